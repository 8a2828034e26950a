"""Run a plan on threads of this process: the real engine, without a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.cluster.context import RankContext, Recorder
from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.engine import Job, Outcome, train
from workbench.mesh import balanced
from workbench.order import Order
from workbench.plan import Plan
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
        """Parameters and buffers after the run."""
        return self.outlets[0].kept

    @property
    def losses(self) -> np.ndarray:
        return np.array([row["loss"] for row in self.outcomes[0].rows])


def run_on_threads(
    work: Workload,
    strategy: str,
    steps: int,
    *,
    record_spans: bool = False,
    stop_at_start: int | None = None,
    **options: object,
) -> ThreadRun:
    """Train ``work`` under ``strategy`` with ranks as threads."""
    planned = plan(work, strategy, **options)  # type: ignore[arg-type]
    job = Job(work.payload(), planned, steps, record_spans)
    x, y = work.x.compute(), work.y.compute()
    test = None if work.test_x is None else (work.test_x.compute(), work.test_y.compute())
    degree = planned.mesh.degree("data")
    order = Order(work.samples, work.batch_size, work.seed)

    def rank(comm: Comm) -> tuple[Outcome, Recorder]:
        start, stop = order.piece(degree, comm.rank)
        arrays = {"x": x[start:stop], "y": y[start:stop]}
        if test is not None:
            first, last = balanced(len(test[0]), degree, comm.rank)
            arrays |= {"test_x": test[0][first:last], "test_y": test[1][first:last]}
        outlet = Recorder(told=["stop"] if stop_at_start == comm.rank else [])
        context = RankContext(
            comm.rank, comm.size, comm, torch.device("cpu"), arrays=arrays, outlet=outlet
        )
        return train(context, job), outlet

    results = run_threads(degree, rank, timeout_s=60.0)
    return ThreadRun(planned, [o for o, _ in results], [c for _, c in results])
