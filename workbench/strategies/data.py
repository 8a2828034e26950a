"""Data parallelism: every rank holds the whole model and a share of each batch.

Each rank computes the gradients of its own samples; one all_reduce adds them up, weighted by sample
count, so that every replica makes the same update as the serial run ("synchronous SGD", Das et al.
2016; bucketed as in Li et al., "PyTorch Distributed", VLDB 2020).
"""

from __future__ import annotations

from dataclasses import replace

from workbench.errors import PlanError
from workbench.mesh import BATCH_AXES
from workbench.plan import Cut, Plan, shares_of
from workbench.strategies import replicas
from workbench.strategies.nearest import fewer_replicas
from workbench.strategies.strategy import Strategy

AXIS = "data"


def cut(plan: Plan) -> Plan:
    """Cut the batch, and nothing else, over the replicas."""
    return cut_batch(plan)


def cut_batch(plan: Plan) -> Plan:
    """Cut the batch over the replicas along all axes of the batch."""
    size, degree = plan.batch.size, plan.mesh.replicas
    if degree > size:
        raise PlanError(
            f"{plan.mesh.along(*BATCH_AXES)} asks for {degree} replicas, but a batch of {size} "
            f"{'sample' if size == 1 else 'samples'} cannot give each of them one. "
            f"Use {fewer_replicas(plan)}, or a batch of {degree} or more."
        )
    rows = (Cut(0, AXIS),)
    if any(cut in planned.input for planned in plan.layers for cut in rows):
        return plan  # another axis has cut it, for all of them
    notes = [f"each replica takes {_each(shares_of(plan.batch, degree))} of the {size} samples"]
    if any(planned.layer.batch_statistics for planned in plan.layers):
        notes.append(_batch_norm_note(plan.option("batch_norm", "synchronized")))
    return plan.adding(
        layers=tuple(
            replace(planned, input=(*planned.input, *rows), output=(*planned.output, *rows))
            for planned in plan.layers
        ),
        notes=notes,
    )


def _batch_norm_note(choice: str) -> str:
    if choice == "local":
        return (
            'batch_norm="local": each replica normalises by its own samples, '
            "so the result is not that of the serial run"
        )
    return "BatchNorm takes mean and variance of the whole batch, as the serial run does"


def _each(sizes: tuple[int, ...]) -> str:
    few, many = min(sizes), max(sizes)
    return str(many) if few == many else f"{few} or {many}"


STRATEGY = Strategy(
    axis=AXIS,
    family="data parallel",
    title="Data parallel (each rank a share of the batch)",
    summary=(
        "Every rank holds all weights and a share of each batch; gradients are added "
        "up once per step."
    ),
    cut=cut,
    options={"batch_norm": ("synchronized", "local"), **replicas.OPTIONS},
    remedies={
        "compute": "a larger batch: a small share of it uses a core less well",
        "comm": (
            "a larger batch, compression, or tensor: the gradients of all weights travel once a "
            "step, whatever the batch"
        ),
        "wait": "shares of equal size, or fewer other programs beside it",
        "optimizer": "sharded with stage=1, or tensor: here every rank updates all weights",
        "load": "data that lies in memory, in the dtype of the workload",
    },
)
