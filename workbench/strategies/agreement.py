"""What ranks agree on under every strategy: weights at the start, statistics, gradients, the loss.

A strategy says how arrays are cut; what follows from that for every axis alike is added here, once
all axes have cut.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.mesh import BATCH_AXES, shares
from workbench.plan import Bucket, Collective, LayerPlan, Plan
from workbench.traced import Array, Sums

BUCKET_BYTES = 32 * 2**20
RECORD_NUMBERS = 3  # loss, ranks that were told to stop, ranks that failed


def agree(plan: Plan) -> Plan:
    """Add the collectives of a plan that all its axes have cut; one rank needs none."""
    if plan.mesh.size == 1:
        return plan
    axes = tuple(axis for axis, degree in plan.mesh.axes if degree > 1)
    buckets = gradient_buckets(plan, axes)
    trainable = sum(len(bucket.names) for bucket, _ in buckets)
    return replace(
        plan,
        buckets=tuple(bucket for bucket, _ in buckets),
        collectives=(
            *(_initial_value(array, axes) for array in plan.arrays),
            *plan.collectives,
            *(sums for planned in plan.layers for sums in _layer_sums(plan, planned)),
            *_loss_weight(plan, axes),
            *(
                Collective(
                    f"gradients, bucket {number}",
                    "all_reduce",
                    bucket.axes,
                    sum(array.numel for array in arrays),
                    arrays[0].itemsize,
                    "backward",
                    arrays=bucket.names,
                )
                for number, (bucket, arrays) in enumerate(buckets)
                if bucket.axes  # else no other rank has a gradient of these
            ),
            *_gradient_norm(plan, axes),
            Collective(
                "record of the step", "all_reduce", axes, RECORD_NUMBERS + trainable, 8, "record"
            ),
        ),
    )


def gradient_buckets(
    plan: Plan, axes: tuple[str, ...]
) -> tuple[tuple[Bucket, tuple[Array, ...]], ...]:
    """Group trainable parameters into buckets of at most ``BUCKET_BYTES``.

    One bucket has one item size and one set of axes over which its gradients are added up: those
    that do not cut the parameter. Last layers come first, since their gradients are ready first. A
    parameter larger than a bucket has one to itself. The arrays of a bucket are a rank's shares.
    """
    buckets: list[tuple[tuple[str, ...], list[Array]]] = []
    latest: dict[tuple[tuple[str, ...], int], list[Array]] = {}
    for array in reversed([a for a in plan.arrays if a.trainable]):
        cutting = {cut.axis for cut in plan.parameter_cuts(array.name)}
        over = tuple(axis for axis in axes if axis not in cutting)
        share = plan.owned(array, 0)
        last = latest.get((over, array.itemsize))
        if last is not None and sum(a.nbytes for a in last) + share.nbytes <= BUCKET_BYTES:
            last.append(share)
        else:
            latest[over, array.itemsize] = [share]
            buckets.append((over, latest[over, array.itemsize]))
    return tuple(
        (Bucket(tuple(a.name for a in found), over), tuple(found)) for over, found in buckets
    )


def _initial_value(array: Array, axes: tuple[str, ...]) -> Collective:
    """Return the broadcast of a whole parameter, of which ranks then keep their share."""
    name = f"{array.name}, initial value"
    return Collective(name, "broadcast", axes, array.numel, array.itemsize, "start")


def _layer_sums(plan: Plan, planned: LayerPlan) -> list[Collective]:
    """Return what a layer's statistics cost, over the axes that cut what they are taken of."""
    layer, found = planned.layer, []
    carried = [] if planned.choice == "gather" else [cut.axis for cut in planned.input]
    for sums in layer.sums:
        axes = {c.axis for c in plan.cut_labels if c.label in sums.labels and c.axis in carried}
        together = plan.option("batch_norm", "synchronized") != "local"
        if sums.over_batch and together:
            axes |= {axis for axis in BATCH_AXES if plan.mesh.degree(axis) > 1}
        if axes:
            found.append(
                Collective(
                    f"{layer.name}: {sums.name}",
                    sums.operation,
                    tuple(axis for axis, _ in plan.mesh.axes if axis in axes),
                    sums.numel * _rows_per_sample(plan, planned, sums),
                    layer.itemsize,
                    sums.phase,
                    times=plan.batch.accumulate,
                    per_sample=sums.per_sample,
                    by_place=_by_channels(plan, planned, sums.numel),
                )
            )
    return found


def _rows_per_sample(plan: Plan, planned: LayerPlan, sums: Sums) -> int:
    """Return how many rows of dim 0 a layer has for each sample of the batch."""
    shape = planned.layer.input_shape
    return max(1, shape[0] // plan.batch.size) if sums.per_sample and shape else 1


def _by_channels(plan: Plan, planned: LayerPlan, numel: int) -> tuple[int, ...]:
    """Return the numbers of each place on the feature axis where a layer has some channels."""
    axis = plan.mesh.feature_axis
    if planned.layer.role != "channelwise" or not any(c.axis == axis for c in planned.input):
        return ()
    channels = planned.layer.input_shape[1]
    each, rest = divmod(numel, channels)
    return tuple(each * size + rest for size in shares(channels, plan.mesh.degree(axis)))


def _gradient_norm(plan: Plan, axes: tuple[str, ...]) -> list[Collective]:
    """Return what it takes to know the norm of all gradients, where that is limited."""
    if not plan.option("clip_norm", ""):
        return []
    return [Collective("norm of the gradients", "all_reduce", axes, 1, 8, "update")]


def _loss_weight(plan: Plan, axes: tuple[str, ...]) -> list[Collective]:
    """Return what a weighted mean (class weights, ignored targets) needs of the whole batch."""
    if plan.option("loss", "mean") != "weighted":
        return []
    return [Collective("weight of the targets", "all_reduce", axes, 1, 8, "forward")]
