"""Run a plan on threads of this process: the real engine, without a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.cluster.context import RankContext, Recorder
from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.engine import Job, Outcome, train
from workbench.placement import pieces
from workbench.plan import Plan, assemble
from workbench.planning import plan
from workbench.workload import Workload


@dataclass
class ThreadRun:
    """What a run on threads gives: per rank the outcome and the context."""

    plan: Plan
    outcomes: list[Outcome]
    outlets: list[Recorder]

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Parameters, buffers and optimizer state after the run, shares put together."""
        whole = {}
        kept = {name: None for outlet in self.outlets for name in outlet.kept}
        for name in kept:
            if name.startswith("random:"):
                continue
            parts = {
                rank: outlet.kept[name]
                for rank, outlet in enumerate(self.outlets)
                if name in outlet.kept
            }
            cuts = self.plan.kept_cuts(name, next(iter(parts.values())).ndim)
            whole[name] = assemble(parts, cuts, self.plan.mesh, np.concatenate)
        return whole

    @property
    def losses(self) -> np.ndarray:
        return np.array([row["loss"] for row in self.outcomes[0].rows])


def run_on_threads(
    work: Workload,
    strategy: str,
    steps: int,
    *,
    record_spans: bool = False,
    preview: bool = False,
    stop_at_start: int | None = None,
    **options: object,
) -> ThreadRun:
    """Train ``work`` under ``strategy`` with ranks as threads."""
    planned = plan(work, strategy, **options)  # type: ignore[arg-type]
    job = Job(work.payload(), planned, steps, record_spans, preview)

    def rank(comm: Comm) -> tuple[Outcome, Recorder]:
        arrays = {
            name: array[tuple(slice(*run) for run in index)].compute(scheduler="sync")
            for name, (array, index) in pieces(work, planned, comm.rank).items()
        }
        outlet = Recorder(told=["stop"] if stop_at_start == comm.rank else [])
        context = RankContext(
            comm.rank, comm.size, comm, torch.device("cpu"), arrays=arrays, outlet=outlet
        )
        return train(context, job), outlet

    results = run_threads(planned.ranks, rank, timeout_s=60.0)
    return ThreadRun(planned, [o for o, _ in results], [c for _, c in results])
