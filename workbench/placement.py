"""Put the data of a workload where a plan needs it: each rank's piece on the rank's own worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from workbench.datasets.opening import source_of
from workbench.given import by_share_name
from workbench.inputs import check_values
from workbench.mesh import balanced
from workbench.order import Order
from workbench.plan import assemble
from workbench.sources.source import Region
from workbench.windows import Run

if TYPE_CHECKING:
    from threading import Event

    import dask.array as da
    from distributed import Future

    from workbench.cluster.lab import Host, Lab
    from workbench.plan import Plan
    from workbench.resuming import Start
    from workbench.workload import Workload

Shares = list[dict[str, "Future"]]


def pieces(work: Workload, plan: Plan, rank: int) -> dict[str, tuple[da.Array, tuple[Run, ...]]]:
    """Return the arrays that ``rank`` needs, by name, each with the range of every dim.

    Names are ``x``, ``x[1]`` and so on if the model takes several inputs, and ``y``; with test data
    there are ``test_x`` ... and ``test_y``.
    Samples to learn from are cut as the plan says. Those to be scored are dealt to all ranks whole.
    """
    order = Order(work.samples, plan.batch.size, work.seed)  # whose rows are whose: any block
    rows = order.piece(plan.mesh.replicas, plan.mesh.replica(rank))
    cuts = {name: plan.cuts_of(traced) for name, traced in by_share_name(plan.inputs).items()}
    cuts["y"] = plan.target
    found: dict[str, tuple[da.Array, tuple[Run, ...]]] = {}
    for name, array in _arrays(work).items():
        if name in cuts:
            found[name] = (array, (rows, *plan.share(array.shape, cuts[name], rank)[1:]))
        else:
            some = balanced(len(array), plan.ranks, rank)
            found[name] = (array, (some, *((0, size) for size in array.shape[1:])))
    return found


def _arrays(work: Workload) -> dict[str, da.Array]:
    """Return all data of a workload by what ranks call it, that to learn from first."""
    found = {**by_share_name(work.inputs), "y": work.y}
    if work.test_y is not None:
        found |= {**by_share_name(work.test_inputs, "test_"), "test_y": work.test_y}
    return found


def overlap(array: da.Array, chunk: tuple[int, ...], index: tuple[Run, ...]) -> int:
    """Return the bytes of a chunk of ``array`` that lie in the ranges of ``index``."""
    count = array.dtype.itemsize
    for sizes, number, (start, stop) in zip(array.chunks, chunk, index, strict=True):
        first = sum(sizes[:number])
        count *= max(0, min(first + sizes[number], stop) - max(first, start))
    return count


_placements: WeakSet[Placement] = WeakSet()
_registry = threading.Lock()


class Placement:
    """Places pieces of dask arrays on workers; keeps those of the last workload for the next run.

    A piece is computed on its worker from the chunks there; the client's process never holds it.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._placed: dict[tuple[Any, ...], Future] = {}
        self._checked: set[tuple[Any, ...]] = set()
        with _registry:
            _placements.add(self)

    def release(self) -> None:
        """Let go of all pieces in this lab; the next run has them placed again."""
        self._keep_only(lambda worker: False)

    def _keep_only(self, wanted: Callable[[str], bool]) -> None:
        """Let go of all that was placed in this lab on workers that are not wanted.

        While anybody holds a piece, Dask has what it was made of pinned to its worker, for others
        too, and waits for a worker that is gone.
        """
        with _registry:
            placements = list(_placements)
        for each in placements:
            if each.lab is self.lab:
                each._placed = {key: held for key, held in each._placed.items() if wanted(key[2])}

    def hosts(self, work: Workload, plan: Plan) -> tuple[Host, ...]:
        """Return the worker of each rank: that which holds most of its chunks, if any are stored.

        A rank never leaves its machine for that: what ranks say to each other weighs more.
        """
        hosts = self.lab.hosts_for(plan.ranks)
        held = {name: there for name, there in self._stored(work).items() if there}
        if not held:
            return hosts
        everyone = self.lab.hosts
        wishes = []
        for rank, usual in enumerate(hosts):
            here: dict[str, int] = {}
            for name, (array, index) in pieces(work, plan, rank).items():
                for chunk, workers in held.get(name, {}).items():
                    for worker in workers:
                        here[worker] = here.get(worker, 0) + overlap(array, chunk, index)
            for place, host in enumerate(everyone):
                if host.host_id == usual.host_id:
                    away = host.worker != usual.worker
                    wishes.append((-here.get(host.worker, 0), away, rank, place))
        chosen: dict[int, Host] = {}
        for _, _, rank, place in sorted(wishes):
            if rank not in chosen and everyone[place] not in chosen.values():
                chosen[rank] = everyone[place]
        return tuple(chosen[rank] for rank in range(plan.ranks))

    def _stored(self, work: Workload) -> dict[str, dict[tuple[int, ...], list[str]]]:
        """Return which workers hold which stored chunks of the data, by name and index."""
        from workbench.datasets.adopt import stored_chunks

        chunks = {name: stored_chunks(array) for name, array in _arrays(work).items()}
        keys = [key for found in chunks.values() for key in found.values()]
        if not keys:
            return {}
        where = self.lab.who_has(keys)
        return {
            name: {index: where[key] for index, key in found.items()}
            for name, found in chunks.items()
        }

    def shares(
        self,
        work: Workload,
        plan: Plan,
        hosts: Sequence[Host] | None = None,
        stop: Event | None = None,
    ) -> Shares:
        """Return, for each rank, futures of its data, by name as :func:`pieces` has them.

        ``hosts`` are the workers of the ranks; those of :meth:`hosts` if left out. Setting
        ``stop`` ends the look at the data's values with a RunError.

        Raises
        ------
        PlanError
            If the data holds something that cannot be learned from; names the first offender.
        """
        self.check(work, plan, stop)
        hosts = hosts or self.hosts(work, plan)
        self._keep_only({host.worker for host in self.lab.hosts}.__contains__)
        wanted: dict[tuple[Any, ...], Future] = {}
        result: Shares = []
        for rank, host in enumerate(hosts):
            share = {
                name: self._place(array, index, host, work.shuffle_block, wanted)
                for name, (array, index) in pieces(work, plan, rank).items()
            }
            result.append(share)
        names = {key[0] for key in wanted}
        self._placed = {k: v for k, v in self._placed.items() if k[0] in names} | wanted
        return result

    def add(self, shares: Shares, start: Start, plan: Plan, hosts: Sequence[Host]) -> None:
        """Add to the shares of every rank those of the state that a run goes on from."""
        for rank, (share, host) in enumerate(zip(shares, hosts, strict=True)):
            wanted = start.shares(plan, rank)
            placed = self.lab.place(list(wanted.values()), [host] * len(wanted))
            share.update(zip(wanted, placed, strict=True))

    def _place(
        self,
        array: da.Array,
        index: tuple[tuple[int, int], ...],
        host: Host,
        block: int,
        wanted: dict[tuple[Any, ...], Future],
    ) -> Future:
        key = (array.name, index, host.worker, block)
        future = self._placed.get(key)
        if future is None or future.status in ("error", "lost", "cancelled"):
            source = source_of(array)
            if source is None:
                (future,) = self.lab.place([array[tuple(slice(*run) for run in index)]], [host])
            else:  # read where it is needed, past the graph: only the rows that the rank has
                future = self.lab.load(Region(source, index, str(array.dtype), block, 0), host)
        wanted[key] = future
        return future

    def check(self, work: Workload, plan: Plan, stop: Event | None) -> None:
        """Look for NaN and labels out of range, once for the same data and model.

        Raises
        ------
        PlanError
            Names the first offender.
        """
        from workbench.losses import class_dim, ignored_label

        dim = class_dim(work.loss)
        output = plan.output_shape
        classes = output[dim] if dim is not None and len(output) > 1 else None
        names = (array.name for array in _arrays(work).values())
        key = (*names, classes, ignored_label(work.loss))
        if key not in self._checked:
            check_values(work, classes, self.lab.client, stop)
            self._checked.add(key)


def kept_arrays(
    plan: Plan,
    kept: Mapping[str, Mapping[int, tuple[tuple[int, ...], str]]],
    kind: str,
    take: Callable[[int, str], Any],
) -> dict[str, da.Array]:
    """Return what ranks have kept of ``kind`` as dask arrays, whose chunks are the ranks' shares.

    ``kept`` has shapes and dtypes by ``"kind:name"`` and rank; ``take(rank, name)`` gives the
    delayed share.
    """
    import dask.array as da

    found = {}
    for name, by_rank in kept.items():
        if name.startswith(f"{kind}:"):
            plain = name.partition(":")[2]
            parts = {
                rank: da.from_delayed(take(rank, name), shape=shape, dtype=dtype)
                for rank, (shape, dtype) in by_rank.items()
            }
            cuts = plan.kept_cuts(name, next(iter(parts.values())).ndim)
            found[plain] = assemble(parts, cuts, plan.mesh, da.concatenate)
    return found
