"""What ranks agree on under every strategy: weights at the start, statistics, gradients, the loss.

A strategy says how arrays are cut; what follows from that for every axis alike is added here, once
all axes have cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from itertools import chain
from math import prod

from workbench.mesh import BATCH_AXES
from workbench.plan import Bucket, Collective, LayerPlan, Plan
from workbench.strategies import replicas
from workbench.strategies.pipeline import stage_of
from workbench.traced import Array, Sums

BUCKET_BYTES = 32 * 2**20
EXACT_BYTES = 4  # of a number in a sum that is taken in float32 at least
LOW_NOTE = (
    "precision bf16: forward and backward in bfloat16; weights, optimizer state, sums of gradients "
    "and of norms, and the loss in float32. Equal to the serial run of the same precision to the "
    "rounding of bfloat16 (8 bits), since sums are rounded in another order"
)
RECORD_NUMBERS = 3  # loss, ranks that were told to stop, ranks that failed


def agree(plan: Plan) -> Plan:
    """Add the collectives of a plan that all its axes have cut; one rank needs none."""
    if plan.low:
        plan = plan.adding(notes=[LOW_NOTE])
    if plan.mesh.size == 1:
        # Gradients are added up in float32 over micro-batches too.
        found = gradient_buckets(plan, ()) if plan.low else ()
        return replace(plan, buckets=tuple(bucket for bucket, _ in found))
    axes = tuple(axis for axis, degree in plan.mesh.axes if degree > 1)
    buckets = gradient_buckets(plan, replicas.without_data(plan, axes))
    plan = replace(plan, buckets=tuple(bucket for bucket, _ in buckets))
    if plan.inexact:
        plan = replace(plan, averaged=replicas.averaged(plan)).adding(notes=[replicas.note(plan)])
    trainable = sum(len(bucket.names) for bucket, _ in buckets)
    return replace(
        plan,
        collectives=(
            *(_initial_value(plan, array, axes) for array in plan.arrays),
            *_in_stages(plan, chain(plan.collectives, _layer_sums(plan))),
            *_loss_weight(plan, axes),
            *(
                moved
                for number, (bucket, arrays) in enumerate(buckets)
                for moved in replicas.gradient_collectives(
                    plan, number, bucket, plan.kept_itemsize(arrays[0])
                )
            ),
            *_gradient_norm(plan, replicas.without_data(plan, axes)),
            Collective(
                "record of the step", "all_reduce", axes, RECORD_NUMBERS + trainable, 8, "record"
            ),
            *replicas.averaging_collectives(plan),
        ),
    )


def _in_stages(plan: Plan, found: Iterable[Collective]) -> Iterator[Collective]:
    """Yield collectives of layers, in which only ranks take part that have the layer.

    Those of a forward pass come once more where that is done again.
    """
    ranks, last = plan.mesh.degree("pipeline"), len(plan.stages) - 1
    again = plan.stages and plan.option("recompute", "no") == "yes"
    stages: dict[int, int] = {}  # of calls, by their number
    calls: dict[str, list[int]] = {}
    for number, planned in enumerate(plan.layers):
        if (stage := stage_of(plan, number)) is not None:
            stages[number] = stage
            calls.setdefault(planned.layer.name, []).append(number)
    seen: Counter[tuple[str, str]] = Counter()
    for moved in found:
        mine = calls.get(moved.name.partition(": ")[0])
        if mine is None or moved.places:
            yield moved
            continue
        before = seen[moved.name, moved.phase]
        seen[moved.name, moved.phase] += 1
        call = mine[min(before, len(mine) - 1)] if moved.call is None else moved.call
        moved = replace(moved, places=(stages[call] % ranks,))
        yield moved
        # The last stage goes backward at once, so that it recomputes nothing. Under stage 2 whole
        # parameters are still there.
        kept = moved.name.endswith(": parameters") and plan.option("stage", "3") == "2"
        if again and not kept and moved.phase == "forward" and stages[call] != last:
            yield replace(moved, phase="backward")


def gradient_buckets(
    plan: Plan, axes: tuple[str, ...]
) -> tuple[tuple[Bucket, tuple[Array, ...]], ...]:
    """Group trainable parameters into buckets of at most ``BUCKET_BYTES``.

    One bucket has one item size and one set of axes over which its gradients are added up: those
    that do not cut the parameter. Last layers come first, since their gradients are ready first. A
    parameter larger than a bucket has one to itself. The arrays of a bucket are a rank's shares.
    """
    Key = tuple[tuple[str, ...], tuple[int, ...]]
    buckets: list[tuple[Key, list[Array]]] = []
    latest: dict[tuple[Key, int], list[Array]] = {}
    pipeline = plan.mesh.degree("pipeline")
    for array in reversed([a for a in plan.arrays if a.trainable]):
        cutting = {cut.axis for cut in plan.parameter_cuts(array.name)}
        holders = plan.holders(array.name)
        places = holders if len(holders) < pipeline else ()
        if len(holders) == 1:
            cutting.add("pipeline")
        over = tuple(axis for axis in axes if axis not in cutting)
        key, share = (over, places), plan.owned(array, 0)
        itemsize = plan.kept_itemsize(array)
        last = latest.get((key, itemsize))
        if last is not None and itemsize * sum(a.numel for a in (*last, share)) <= BUCKET_BYTES:
            last.append(share)
        else:
            latest[key, itemsize] = [share]
            buckets.append((key, latest[key, itemsize]))
    return tuple(
        (Bucket(tuple(a.name for a in found), over, places), tuple(found))
        for (over, places), found in buckets
    )


def _initial_value(plan: Plan, array: Array, axes: tuple[str, ...]) -> Collective:
    """Return the broadcast of a whole parameter, of which ranks then keep their share."""
    name = f"{array.name}, initial value"
    itemsize = plan.kept_itemsize(array)
    return Collective(name, "broadcast", axes, array.numel, itemsize, "start")


def _layer_sums(plan: Plan) -> Iterator[Collective]:
    """Yield what layers' statistics cost, over the axes that cut what they are taken of."""
    together = plan.option("batch_norm", "synchronized") != "local"
    for number, planned in enumerate(plan.layers):
        layer = planned.layer
        carried = [] if planned.choice == "gather" else [cut.axis for cut in planned.input]
        for sums in layer.sums:
            axes = {c.axis for c in plan.cut_labels if c.label in sums.labels and c.axis in carried}
            if sums.over_batch and together:
                axes |= {axis for axis in BATCH_AXES if plan.mesh.degree(axis) > 1}
            if axes:
                yield Collective(
                    f"{layer.name}: {sums.name}",
                    sums.operation,
                    tuple(axis for axis, _ in plan.mesh.axes if axis in axes),
                    sums.numel * _rows_per_sample(plan, planned, sums),
                    max(layer.itemsize, EXACT_BYTES) if sums.exact else layer.itemsize,
                    sums.phase,
                    times=plan.batch.accumulate,
                    per_sample=sums.per_sample,
                    by_rank=_by_rank(plan, planned, sums, axes),
                    call=number,
                )


def _rows_per_sample(plan: Plan, planned: LayerPlan, sums: Sums) -> int:
    """Return how many rows of dim 0 a layer has for each sample of the batch."""
    shape = planned.layer.input_shape
    return max(1, shape[0] // plan.batch.size) if sums.per_sample and shape else 1


def _by_rank(plan: Plan, planned: LayerPlan, sums: Sums, axes: Set[str]) -> tuple[int, ...]:
    """Return the numbers of each rank where axes beside those of a sum cut what it is taken of."""
    shape = planned.layer.input_shape
    cuts = [c for c in planned.input if c.axis not in axes and c.axis not in BATCH_AXES]
    if not cuts or planned.choice == "gather":
        return ()
    every = [plan.share(shape, cuts, rank) for rank in range(plan.ranks)]
    if planned.layer.role == "channelwise":
        each, rest = divmod(sums.numel, shape[1])
        return tuple(each * (own[1][1] - own[1][0]) + rest for own in every)
    if sums.over_batch:
        return ()  # running statistics are of channels, which every rank has all of
    whole = prod(shape)
    return tuple(sums.numel * prod(stop - start for start, stop in own) // whole for own in every)


def _gradient_norm(plan: Plan, axes: tuple[str, ...]) -> list[Collective]:
    """Return what it takes to know the norm of all gradients, where that is limited."""
    if not plan.option("clip_norm", "") or not axes:
        return []
    return [Collective("norm of the gradients", "all_reduce", axes, 1, 8, "update")]


def _loss_weight(plan: Plan, axes: tuple[str, ...]) -> list[Collective]:
    """Return what a weighted mean (class weights, ignored targets) needs of the whole batch."""
    if plan.option("loss", "mean") != "weighted":
        return []
    return [Collective("weight of the targets", "all_reduce", axes, 1, 8, "forward")]
