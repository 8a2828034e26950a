"""Go on from another run under another strategy: its state, cut anew for the ranks that need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workbench.errors import PlanError
from workbench.plan import Cut, Plan

if TYPE_CHECKING:
    import dask.array as da

    from workbench.workload import Workload


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

    ``arrays`` are whole dask arrays by ``"parameter:NAME"``, ``"buffer:NAME"`` and
    ``"optimizer:KEY:NAME"``, whose chunks lie on the workers of that run.
    """

    arrays: Mapping[str, da.Array]
    step: int

    def shares(self, plan: Plan, rank: int) -> dict[str, da.Array]:
        """Return what ``rank`` needs of every array: a rechunk, done where the chunks are."""
        found = {}
        for name, array in self.arrays.items():
            if not plan.holds(name.rpartition(":")[2], rank):
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
            f"start= goes on from a run that has ended, and {run.label} is {run.status}; wait for "
            "it with run.wait()."
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
    arrays = {
        f"{kind}:{name}": array
        for kind in ("parameter", "buffer", "optimizer")
        for name, array in run.state(kind).items()
    }
    return Start(arrays, run.first_step + run.step)


def _optimizer(work: Workload) -> str:
    return type(work.make_optimizer(list(work.make_model().named_parameters()))).__name__


def _share(array: da.Array, cut: Cut, plan: Plan, rank: int) -> da.Array:
    if cut.flat is None:
        start, stop = plan.share(array.shape, [cut], rank)[cut.dim]
        return array[(*[slice(None)] * cut.dim, slice(start, stop))]
    sizes = [size for _, size in cut.flat.parts]
    ranges = [slice(*plan.share_of_label(label, size, rank)) for label, size in cut.flat.parts]
    index = np.arange(array.shape[cut.dim]).reshape(sizes)[tuple(ranges)].ravel()
    return array[(*[slice(None)] * cut.dim, index)]
