"""Data parallelism: every rank holds the whole model and a share of each batch.

Each rank computes the gradients of its own samples; one all_reduce adds them up, weighted by sample
count, so that every replica makes the same update as the serial run ("synchronous SGD", Das et al.
2016; bucketed as in Li et al., "PyTorch Distributed", VLDB 2020).
"""

from __future__ import annotations

from dataclasses import replace

from workbench.errors import PlanError
from workbench.plan import Array, Collective, Cut, Plan, shares_of
from workbench.strategies.strategy import Strategy

AXIS = "data"
BUCKET_BYTES = 32 * 2**20
RECORD_NUMBERS = 3  # loss, ranks that were told to stop, ranks that failed


def cut(plan: Plan, degree: int) -> Plan:
    """Cut the batch, and nothing else, over ``degree`` replicas."""
    size = plan.batch.size
    if degree > size:
        raise PlanError(
            f"data={degree} asks for {degree} replicas, but a batch of {size} "
            f"{'sample' if size == 1 else 'samples'} cannot give each of them one. "
            f"Use data={size}, or a batch of {degree} or more."
        )
    rows = (Cut(0, AXIS),)
    buckets = gradient_buckets(plan.arrays)
    notes = [f"each replica takes {_each(shares_of(plan.batch, degree))} of the {size} samples"]
    if any(planned.layer.batch_statistics for planned in plan.layers):
        notes.append(_batch_norm_note(plan.option("batch_norm", "synchronized")))
    return plan.adding(
        mesh=plan.mesh.with_axis(AXIS, degree),
        layers=tuple(
            replace(planned, input=(*planned.input, *rows), output=(*planned.output, *rows))
            for planned in plan.layers
        ),
        buckets=tuple(tuple(array.name for array in bucket) for bucket in buckets),
        collectives=(
            *(_initial_weights(array) for array in plan.arrays),
            *_batch_statistics(plan),
            *_loss_weight(plan),
            *(
                Collective(
                    f"gradients, bucket {number}",
                    "all_reduce",
                    AXIS,
                    sum(array.numel for array in bucket),
                    bucket[0].itemsize,
                    "backward",
                )
                for number, bucket in enumerate(buckets)
            ),
            Collective(
                "record of the step",
                "all_reduce",
                AXIS,
                RECORD_NUMBERS + sum(len(bucket) for bucket in buckets),
                8,
                "record",
            ),
        ),
        notes=notes,
    )


def gradient_buckets(arrays: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
    """Group trainable parameters into buckets of one item size and at most ``BUCKET_BYTES``.

    Last layers first, since their gradients are ready first. A parameter larger than a bucket has
    one to itself.
    """
    buckets: list[list[Array]] = []
    for array in reversed([a for a in arrays if a.trainable]):
        last = buckets[-1] if buckets else None
        fits = (
            last is not None
            and last[0].itemsize == array.itemsize
            and sum(a.nbytes for a in last) + array.nbytes <= BUCKET_BYTES
        )
        if fits and last is not None:
            last.append(array)
        else:
            buckets.append([array])
    return tuple(tuple(bucket) for bucket in buckets)


def _initial_weights(array: Array) -> Collective:
    return Collective(
        f"{array.name}, initial value", "broadcast", AXIS, array.numel, array.itemsize, "start"
    )


def _batch_statistics(plan: Plan) -> list[Collective]:
    """Return the collectives of the BatchNorm layers, which need the whole batch's statistics."""
    if plan.option("batch_norm", "synchronized") == "local":
        return []
    found = []
    for planned in plan.layers:
        layer = planned.layer
        if not layer.batch_statistics:
            continue
        channels = layer.input_shape[1]
        found += [
            Collective(
                f"{layer.name}: mean and variance",
                "all_gather",
                AXIS,
                2 * channels + 1,
                layer.itemsize,
                "forward",
                plan.batch.accumulate,
            ),
            Collective(
                f"{layer.name}: their gradients",
                "all_reduce",
                AXIS,
                2 * channels,
                layer.itemsize,
                "backward",
                plan.batch.accumulate,
            ),
        ]
    return found


def _loss_weight(plan: Plan) -> list[Collective]:
    """Return what a weighted mean (class weights, ignored targets) needs of the whole batch."""
    if plan.option("loss", "mean") != "weighted":
        return []
    return [Collective("weight of the targets", "all_reduce", AXIS, 1, 8, "forward")]


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
    options={"batch_norm": ("synchronized", "local")},
)
