"""Go on from another run under another strategy: its state, cut anew for the ranks that need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workbench.errors import PlanError
from workbench.mesh import Mesh
from workbench.plan import Cut, Plan, owner_of, runs_of

if TYPE_CHECKING:
    import dask.array as da

    from workbench.workload import Workload


STATE = ("parameter", "buffer", "optimizer", "number", "group")
"""The kinds of kept arrays that a run goes on from whatever its strategy is."""


class Ended(Protocol):
    """What is asked of a run that another goes on from: see :class:`workbench.run.Run`."""

    work: Workload
    plan: Plan
    kept: Mapping[str, Any]
    status: Any
    first_step: int

    @property
    def label(self) -> str:
        """The strategy, and the threads per rank."""

    @property
    def step(self) -> int:
        """Number of finished steps."""

    def state(self, kind: str) -> dict[str, da.Array]:
        """Return what is kept of ``kind``."""


@dataclass(frozen=True)
class Start:
    """Where a run begins: all that another has kept, and at which step.

    ``arrays`` are whole dask arrays by ``"parameter:NAME"``, ``"buffer:NAME"``,
    ``"optimizer:KEY:NAME"`` and so on, whose chunks lie on the workers of that run. ``generators``
    are the states of its generators, by the rank that goes on from them and by
    ``"random:RANK:NAME"``.
    """

    arrays: Mapping[str, da.Array]
    step: int
    generators: Mapping[int, Mapping[str, da.Array]] = field(default_factory=dict)

    def shares(self, plan: Plan, rank: int) -> dict[str, da.Array]:
        """Return what ``rank`` needs of every array: a rechunk, done where the chunks are."""
        found = dict(self.generators.get(rank, {}))
        for name, array in self.arrays.items():
            if not plan.holds(owner_of(name), rank):
                continue
            for cut in plan.kept_cuts(name, array.ndim):
                array = _share(array, cut, plan, rank)
            found[name] = array
        return found


def start_from(run: Ended, work: Workload, plan: Plan) -> Start:
    """Return where a run of ``work`` under ``plan`` begins if it goes on from ``run``.

    Raises
    ------
    PlanError
        If ``run`` has not ended, or was of another model, optimizer, batch size or seed.
    """
    if not run.kept:
        raise PlanError(
            f"start= goes on from a run that has ended with its weights kept, and {run.label} is "
            f"{run.status} and holds none; wait for a run with run.wait(), or load one that was "
            "saved with wb.load(path)."
        )
    theirs = {a.name: a.shape for a in run.plan.arrays}
    ours = {a.name: a.shape for a in plan.arrays}
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            raise PlanError(
                f"start= goes on with the same model, and parameter {name!r} has the shape "
                f"{ours.get(name)} here and {theirs.get(name)} there; leave start= out."
            )
    for what in ("batch_size", "seed", "samples", "shuffle_block"):
        here, there = getattr(work, what), getattr(run.work, what)
        if here != there:
            raise PlanError(
                f"start= goes on in the order of the data, and {what} is {here} here and {there} "
                f"there; use {what}={there}."
            )
    here, there = map(_optimizer, (work, run.work))
    if here != there:
        raise PlanError(
            f"start= goes on with the state of the optimizer, which is {here} here and {there} "
            f"there; use {there}."
        )
    check_kept(run.kept, "start=")
    arrays = {f"{kind}:{name}": array for kind in STATE for name, array in run.state(kind).items()}
    drawn = run.state("random")
    generators = {
        rank: {
            f"random:{rank}:{name.partition(':')[2]}": array
            for name, array in drawn.items()
            if name.partition(":")[0] == str(other)
        }
        for rank, other in draws_on(run.plan.mesh, plan.mesh).items()
    }
    return Start(arrays, run.first_step + run.step, generators)


def check_kept(kept: Iterable[str], asked: str) -> None:
    """Raise PlanError if an optimizer has had something that could not be kept."""
    for name in kept:
        kind, _, rest = name.partition(":")
        if kind == "unkept":
            entry, _, owner = rest.partition(":")
            raise PlanError(
                f"{asked} takes the state of the optimizer along, and its {entry!r} of parameter "
                f"{owner!r} is neither an array nor a number; an optimizer that keeps tensors and "
                "numbers, such as those of torch.optim, goes on exactly."
            )


def draws_on(old: Mesh, new: Mesh) -> dict[int, int]:
    """Return whose generators each rank of ``new`` goes on from, where it takes the same samples.

    Ranks that are cut otherwise draw other numbers, and have none to go on from. Nor have stages of
    a pipeline that there were not: two that go on from one would draw the same for ever.
    """
    if old == new:
        return {rank: rank for rank in range(new.size)}
    if old.replicas != new.replicas:
        return {}
    first: dict[int, int] = {}
    for rank in range(old.size):
        first.setdefault(old.stream(rank), rank)
    streams = {rank: new.stream(rank) for rank in range(new.size)}
    return {rank: first[stream] for rank, stream in streams.items() if stream in first}


def _optimizer(work: Workload) -> str:
    return type(work.make_optimizer(list(work.make_model().named_parameters()))).__name__


def _share(array: da.Array, cut: Cut, plan: Plan, rank: int) -> da.Array:
    if cut.flat is None:
        start, stop = plan.share(array.shape, [cut], rank)[cut.dim]
        return array[(*[slice(None)] * cut.dim, slice(start, stop))]
    ranges = [plan.share_of_label(label, size, rank) for label, size in cut.flat.parts]
    index = np.concatenate([np.arange(*run) for run in runs_of(cut.flat, ranges)])
    return array[(*[slice(None)] * cut.dim, index)]
