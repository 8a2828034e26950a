"""A run that was saved, as it lies on the workers when it is loaded again."""

from __future__ import annotations

import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checkpoint.fitting import options_of
from workbench.errors import RunError
from workbench.placement import kept_arrays

if TYPE_CHECKING:
    import dask.array as da
    from distributed import Future

    from workbench.cluster.lab import Lab
    from workbench.plan import Plan
    from workbench.workload import Workload


Kept = dict[str, dict[int, tuple[tuple[int, ...], str]]]
"""Shapes and dtypes of shares on workers: by name, then by rank."""


@dataclass(frozen=True, slots=True)
class Place:
    """The worker that holds the shares of a rank, by Dask's address."""

    worker: str


class SavedRun:
    """A run that has been loaded: what it had come to, cut for the ranks of a plan.

    It is taken wherever a run that has ended is: ``wb.run(..., start=saved)``, ``wb.evaluate``,
    ``wb.save``. Its arrays are freed with it.

    Attributes
    ----------
    path:
        Where it was loaded from.
    work, plan, lab, threads:
        As those of a run.
    step:
        Finished steps, those of the runs before it included; 0 for plain weights.
    kept:
        Shapes and dtypes of the shares on the workers: by name, then by rank.
    """

    status = "loaded"
    first_step = 0

    def __init__(
        self,
        path: Path,
        work: Workload,
        plan: Plan,
        lab: Lab,
        threads: int,
        step: int,
        kept: Mapping[str, Mapping[int, tuple[tuple[int, ...], str]]],
        shares: Sequence[Future],
        workers: Sequence[str],
    ) -> None:
        from workbench.cluster.devices import resolve_device

        self.path, self.work, self.plan, self.lab = path, work, plan, lab
        self.threads, self.step, self.kept = threads, step, kept
        self.device = resolve_device("auto", lab, plan.ranks)
        self.ranks = tuple(Place(worker) for worker in workers)
        self._shares = tuple(shares)
        self._taken: dict[tuple[int, str], Future] = {}
        self._lock = threading.Lock()

    @property
    def strategy(self) -> str:
        """The strategy that it is cut by."""
        return self.plan.strategy

    @property
    def options(self) -> dict[str, Any]:
        """The options of its plan, with which another run goes on exactly as it would have."""
        return {"accumulate": self.plan.batch.accumulate, **options_of(self.plan)}

    @property
    def label(self) -> str:
        """The strategy, and the threads per rank."""
        return f"{self.plan.strategy}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def parameters(self) -> dict[str, da.Array]:
        """The parameters as dask arrays whose chunks lie on the workers that own them."""
        return self.state("parameter")

    def state(self, kind: str) -> dict[str, da.Array]:
        """Return what there is of ``kind`` as dask arrays: "parameter", "buffer", "optimizer"...

        Raises
        ------
        RunError
            If its lab is closed.
        """
        if self.lab.closed:
            raise RunError(
                f"What was loaded from {self.path} is gone with its lab, which is closed; load it "
                "again."
            )
        return kept_arrays(self.plan, self.kept, kind, self.take)

    def take(self, rank: int, name: str) -> Future:
        """Return the future of an array of a rank."""
        with self._lock:
            if (rank, name) not in self._taken:
                self._taken[rank, name] = self.lab.client.submit(
                    operator.getitem,
                    self._shares[rank],
                    name,
                    workers=[self.ranks[rank].worker],
                    allow_other_workers=False,
                    pure=False,
                )
            return self._taken[rank, name]

    def __repr__(self) -> str:
        """Say what it is."""
        return f"<SavedRun {self.work.name} {self.label}: step {self.step}, from {self.path}>"
