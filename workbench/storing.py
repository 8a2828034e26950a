"""Arrays kept on the workers that a scheme names, and moved as it says when workers change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask.array as da
import numpy as np
from dask.optimization import cull
from distributed import Future

from workbench.datasets.adopt import adopt
from workbench.datasets.opening import source_of
from workbench.distribution import Move, check_scheme, chunk_bytes, placement
from workbench.errors import PlanError, RunError

if TYPE_CHECKING:
    from workbench.cluster.host import Host
    from workbench.cluster.lab import Lab

STORE_LIMIT_S = 600.0
_POLL_S = 0.01
CAPACITIES = ("memory", "cores")

_numbers = count()


def store(
    *arrays: Any,
    scheme: str = "rendezvous",
    capacity: str | Mapping[str, float] = "memory",
    lab: Lab | None = None,
) -> Stored:
    """Keep arrays on the workers of a cluster, each chunk on the one that a hash of its key names.

    Arrays of one length are cut alike along dim 0, and what belongs to the same samples lies
    together: labels beside their images. Workers make or read their own chunks.

    Parameters
    ----------
    arrays:
        Dask arrays, numpy arrays or tensors of numbers.
    scheme:
        As for :func:`workbench.placement`.
    capacity:
        How much a worker counts: by its ``"memory"``, its ``"cores"``, or numbers by its name.
    lab:
        The cluster; the one opened last if left out.

    Raises
    ------
    PlanError
        If there is no such scheme or worker, or an array is of no use.
    RunError
        If a chunk cannot be made, or no cluster is there any more.
    """
    from workbench.cluster.lab import current_lab

    check_scheme(scheme)
    if not arrays:
        raise PlanError("There is nothing to store; give at least one array.")
    given = [adopt(array, f"array {n}") for n, array in enumerate(arrays)]
    return Stored(tuple(given), scheme, capacity, lab or current_lab())


class Stored:
    """Arrays whose chunks lie on the workers of a cluster; made by :func:`store`.

    Attributes
    ----------
    arrays:
        The arrays as dask arrays whose chunks are there already; to be given to a workload.
    table:
        Which worker is to have which rows, see :class:`workbench.distribution.Distribution`.
    """

    def __init__(
        self,
        arrays: tuple[da.Array, ...],
        scheme: str,
        capacity: str | Mapping[str, float],
        lab: Lab,
    ) -> None:
        self.lab, self._capacity = lab, capacity
        first = arrays[0]
        self._lazy = tuple(
            _in_memory(a.rechunk({0: first.chunks[0]}) if len(a) == len(first) else a)
            for a in arrays
        )
        self._groups: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        sizes: dict[str, int] = {}
        for number, array in enumerate(self._lazy):
            together = first if len(array) == len(first) else array
            for index, size in chunk_bytes(array, f"array {number}").items():
                key = f"{together.name}/{index[0]}"
                self._groups.setdefault(key, []).append((number, index))
                sizes[key] = sizes.get(key, 0) + size
        hosts = lab.hosts
        self.table = placement(sizes, self._capacities(hosts), scheme)
        self._held: dict[tuple[int, tuple[int, ...]], Future] = {}
        self._make(self.table.owner, hosts)
        self._arrive()

    @property
    def arrays(self) -> tuple[da.Array, ...]:
        """The arrays, in the order in which they were given."""
        found = []
        for number, lazy in enumerate(self._lazy):
            name = f"workbench-stored-{next(_numbers)}-{lazy.name}"
            chunks = {
                (name, *index): future
                for (which, index), future in self._held.items()
                if which == number
            }
            found.append(da.Array(chunks, name, lazy.chunks, dtype=lazy.dtype))
        return tuple(found)

    def where(self) -> dict[str, set[str]]:
        """Return the names of the workers that have all of each group of chunks, as Dask sees it.

        Raises
        ------
        RunError
            If the cluster does not answer.
        """
        names = {host.worker: host.name for host in self.lab.hosts}
        held = self.lab.who_has([future.key for future in self._held.values()])
        return {
            key: set.intersection(
                *({names.get(w, w) for w in held[self._held[part].key]} for part in parts)
            )
            for key, parts in self._groups.items()
        }

    def update(self, leaving: Sequence[str] = ()) -> Move:
        """Move chunks as the workers of now demand; return what moved.

        Chunks go from worker to worker. Those that were lost with their worker are made again.

        Parameters
        ----------
        leaving:
            Names of workers that are to have no chunk any more, before they are taken away.

        Raises
        ------
        PlanError
            If there is no such worker, or none would be left.
        RunError
            If a chunk cannot be moved or made.
        """
        hosts = self.lab.hosts
        for name in leaving:
            if name not in {host.name for host in hosts}:
                there = ", ".join(host.name for host in hosts)
                raise PlanError(f"There is no worker {name!r} that could leave; there are {there}.")
        staying = [host for host in hosts if host.name not in leaving]
        after = self.table.with_workers(self._capacities(staying))
        move = self.table.moved(after)
        held = self.lab.who_has([future.key for future in self._held.values()])
        address = {host.name: host.worker for host in staying}
        lost = {}
        for key, owner in after.owner.items():
            parts = self._groups[key]
            if not all(held[self._held[part].key] for part in parts):
                lost[key] = owner
            elif key in move.keys:
                for part in parts:
                    self._held[part] = self.lab.client.submit(
                        _same,
                        self._held[part],
                        key=f"workbench-moved-{uuid4().hex}",
                        workers=[address[owner]],
                        allow_other_workers=False,
                    )
        self._make(lost, staying)
        self.table = after
        self._arrive()
        return move

    def __str__(self) -> str:
        """Return the table, and whether the cluster obeys it."""
        where = self.where()
        right = sum(where[key] == {owner} for key, owner in self.table.owner.items())
        return f"{self.table}\n{right:,} of {len(where):,} lie where the scheme says (measured)"

    def _make(self, owner: Mapping[str, str], hosts: Sequence[Host]) -> None:
        """Have every worker make the chunks that it is to have."""
        for host in hosts:
            for number, lazy in enumerate(self._lazy):
                mine = [
                    index
                    for key, name in owner.items()
                    if name == host.name
                    for which, index in self._groups[key]
                    if which == number
                ]
                if mine:
                    # Names of their own: a chunk that was lost is not waited for elsewhere.
                    name = f"workbench-store-{next(_numbers)}-{lazy.name}"
                    keys = [(lazy.name, *index) for index in mine]
                    graph, _ = cull(lazy.dask.to_dict(), keys)  # of the data, only what it needs
                    graph.update(((name, *key[1:]), (_same, key)) for key in keys)
                    futures = self.lab.client.get(
                        graph,
                        [(name, *index) for index in mine],
                        sync=False,
                        workers=[host.worker],
                        allow_other_workers=False,
                    )
                    self._held.update(((number, i), f) for i, f in zip(mine, futures, strict=True))

    def _arrive(self) -> None:
        deadline = time.monotonic() + STORE_LIMIT_S
        waiting = list(self._held.values())
        while waiting:
            for future in waiting:
                if future.status in ("error", "lost", "cancelled"):
                    problem = future.exception(timeout=5) if future.status == "error" else None
                    if isinstance(problem, PlanError):
                        raise problem
                    raise RunError(
                        f"A chunk could not be stored: {problem or future.status}"
                    ) from problem
            waiting = [future for future in waiting if not future.done()]
            if waiting and time.monotonic() > deadline:
                raise RunError(
                    f"{len(waiting):,} chunks are not in place after {STORE_LIMIT_S:g} s."
                )
            time.sleep(_POLL_S if waiting else 0)

    def _capacities(self, hosts: Sequence[Host]) -> dict[str, float]:
        if self._capacity == "cores":
            return {host.name: float(host.cores) for host in hosts}
        if self._capacity == "memory":
            return {host.name: float(host.memory_bytes) for host in hosts}
        if not isinstance(self._capacity, Mapping):
            raise PlanError(
                f"capacity={self._capacity!r} must be {' or '.join(map(repr, CAPACITIES))}, or "
                f"numbers by name of the worker."
            )
        missing = [host.name for host in hosts if host.name not in self._capacity]
        if missing:
            raise PlanError(
                f"capacity= has no number for worker {missing[0]!r}; it has "
                f"{', '.join(map(repr, self._capacity))}."
            )
        return {host.name: self._capacity[host.name] for host in hosts}


def _in_memory(array: da.Array) -> da.Array:
    """Return an array whose chunks are no maps of files: what is stored is stored."""
    return array if source_of(array) is None else da.map_blocks(_copied, array, dtype=array.dtype)


def _copied(chunk: np.ndarray) -> np.ndarray:
    return np.array(chunk)


def _same(chunk: Any) -> Any:
    """Task: hold a chunk here, whatever it came from."""
    return chunk
