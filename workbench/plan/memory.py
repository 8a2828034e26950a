"""What a rank keeps in memory: predicted from shares.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from workbench.schedules import SCHEDULES, Action

if TYPE_CHECKING:
    from workbench.plan.plan import LayerPlan, Plan
    from workbench.traced import Traced


LARGE_NUMEL = 1 << 16
"""Gradients of the weights of smaller linear layers are left to autograd, except for halves of a
backward pass: what they cost is mostly the calls."""

TOGETHER = 4
"""So many micro-batches of a pipeline give the gradient of such a weight in one product: each reads
and writes the sum, which takes as long as the arithmetic of 32 rows."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a rank keeps: between steps, and of activations at their peak in a step."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return (
            self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
        )


def memory_of(plan: Plan, rank: int) -> Memory:
    """Return what ``rank`` keeps under ``plan``."""
    parameters = gradients = optimizer = 0
    alike, beside = plan.optimizer_state
    for array in plan.arrays:
        if not plan.holds(array.name, rank):
            continue
        own = plan.owned(array, rank)
        kept = plan.kept_itemsize(array)
        parameters += own.numel * kept
        if array.itemsize != kept:
            parameters += own.nbytes  # the copy that is computed with
        if array.trainable:
            gradients += own.numel * kept
            ranges = plan.share(
                array.shape, plan.kept_cuts(f"optimizer::{array.name}", len(array.shape)), rank
            )
            numel = prod(stop - start for start, stop in ranges)
            optimizer += numel * kept * alike + beside
    more_gradients, more_optimizer = _of_replicas(plan, rank)
    return Memory(
        parameters,
        gradients + more_gradients,
        optimizer + more_optimizer,
        _activations(plan, rank),
    )


def _of_replicas(plan: Plan, rank: int) -> tuple[int, int]:
    """Return what compression keeps beside gradients, and an outer optimizer beside its state."""
    arrays = {array.name: array for array in (*plan.buffers, *plan.arrays)}
    gradients = optimizer = 0
    for bucket in plan.averaged or plan.buckets:
        if "data" not in bucket.axes or not plan.holds(bucket.names[0], rank):
            continue
        owned = [plan.owned(arrays[name], rank) for name in bucket.names]
        itemsize = plan.kept_itemsize(owned[0])
        gradients += plan.compression.kept([array.shape for array in owned], itemsize)
        if plan.averaging is not None:
            sent = itemsize * sum(array.numel for array in owned)
            gradients += sent
            if plan.averaging.nesterov and owned[0].trainable:
                optimizer += 2 * sent
    return gradients, optimizer


def _activations(plan: Plan, rank: int) -> int:
    """Return what is kept for the backward pass when most is.

    Without a pipeline that is one micro-batch; else the micro-batches that a stage has gone forward
    with and not yet backward.
    """
    rows = max(plan.batch.rows(plan.mesh.replicas, plan.mesh.replica(rank)))
    loss = _of_loss(plan, rank, rows)
    if not plan.stages:
        return loss + sum(_saved(plan, planned, rank, rows) for planned in plan.layers)
    ranks, place = plan.mesh.degree("pipeline"), plan.mesh.place(rank, "pipeline")
    schedule = SCHEDULES[plan.option("schedule", "1f1b")]
    lists = schedule.actions(ranks, len(plan.stages) // ranks, plan.batch.accumulate)
    again = plan.option("recompute", "no") == "yes"
    cost, first = {}, {}
    for stage in plan.stages:
        layers = [plan.layers[index] for index in stage.layers]
        cost[stage.number] = sum(_saved(plan, planned, rank, rows) for planned in layers)
        received = {
            (first, array): planned
            for planned in layers
            for first, array in planned.layer.saved_too
            if first not in stage.layers
        }
        cost[stage.number] += sum(
            _saved_bytes(plan, planned, array, rank, rows)
            for (_, array), planned in received.items()
        )
        first[stage.number] = sum(
            prod(plan.passed_shape(crossing.source, crossing.size.of(rows), rank))
            * crossing.itemsize
            for crossing in plan.crossings
            if crossing.stop == stage.number
        )
    halves = schedule.splits_backward
    late = {s.number: _late_bytes(plan, s.layers, rank, rows, halves) for s in plan.stages}
    last = len(plan.stages) - 1
    cost[last] += loss
    kept = {n: first[n] if again and n != last else cost[n] for n in cost}
    return _peak(lists[place], kept, cost, late)


def _of_loss(plan: Plan, rank: int, rows: int) -> int:
    """Return what a loss keeps: as much as the outputs, and the targets."""
    total = 0
    for array, cuts in (
        *((o, (*plan.output, *plan.class_cuts)) for o in plan.outputs),
        (plan.targets, plan.target),
    ):
        if array is not None:
            shares = plan.share(array.shape, cuts, rank)
            numel = prod(stop - start for start, stop in shares)
            # A loss takes them in float32.
            itemsize = max(array.itemsize, 4) if plan.low else array.itemsize
            total += numel // plan.batch.size * rows * itemsize
    return total


def _late_bytes(plan: Plan, layers: Iterable[int], rank: int, rows: int, halves: bool) -> int:
    """Return what a stage keeps of a micro-batch until weights have their gradients.

    What several layers read is kept once.
    """
    read: dict[tuple[int, tuple[int, ...]], int] = {}
    made = 0
    for number in layers:
        planned, layer = plan.layers[number], plan.layers[number].layer
        if not _waits(planned, halves):
            continue
        first, x = next(iter(layer.saved_too), (number, layer.arguments[0]))
        read[first, x.shape] = _saved_bytes(plan, planned, x, rank, rows)
        made += _saved_bytes(plan, planned, layer.results[0], rank, rows)
    return sum(read.values()) + made


def _waits(planned: LayerPlan, halves: bool) -> bool:
    """Return whether the gradient of a layer's weight is worked out later than that of its input.

    With ``halves`` of a backward pass all are, else those that several micro-batches share.
    """
    layer = planned.layer
    weights = [array for array in (*layer.parameters, *layer.tied) if len(array.shape) > 1]
    if len(weights) != 1 or not weights[0].trainable or not layer.results:
        return False
    if layer.kind in ("Conv1d", "Conv2d", "Conv3d"):
        return halves and not any(cut.axis == "spatial" for cut in planned.input)
    return layer.kind == "Linear" and (halves or weights[0].numel >= LARGE_NUMEL)


def _peak(
    actions: Iterable[Action], kept: dict[int, int], cost: dict[int, int], late: dict[int, int]
) -> int:
    """Return the most that is kept at once; ``cost`` is kept while a stage goes backward.

    ``late`` is kept from then on until enough have come together, or until the weight half.
    """
    now = peak = 0
    waiting = dict.fromkeys(late, 0)
    for action in actions:
        if action.kind == "forward":
            now += kept[action.stage]
            peak = max(peak, now)
        elif action.kind == "weight":
            now -= late[action.stage]
        else:
            peak = max(peak, now - kept[action.stage] + cost[action.stage])
            now += late[action.stage] - kept[action.stage]
            peak = max(peak, now)
        if action.kind == "backward":
            waiting[action.stage] += 1
            if waiting[action.stage] == TOGETHER:
                waiting[action.stage] = 0
                now -= TOGETHER * late[action.stage]
    return peak


def _saved(plan: Plan, planned: LayerPlan, rank: int, rows: int) -> int:
    return sum(_saved_bytes(plan, planned, array, rank, rows) for array in planned.layer.saved)


def _saved_bytes(plan: Plan, planned: LayerPlan, array: Traced, rank: int, rows: int) -> int:
    """Return what ``rank`` keeps of an array for ``rows`` samples."""
    numel, batch = _own_numel(plan, planned, array, rank), plan.batch.size
    # Dim 0 counts samples, or samples times something; else another dim, as in (L, N, E).
    if array.shape and (array.shape[0] % batch == 0 or batch in array.shape):
        numel = numel // batch * rows
    return numel * array.itemsize


def _own_numel(plan: Plan, planned: LayerPlan, array: Traced, rank: int) -> int:
    ranges = plan.share(array.shape, plan.cuts_of(array), rank)
    numel = prod(stop - start for start, stop in ranges)
    if planned.choice == "heads" and not any(array.labels):
        layer = planned.layer
        start, stop = plan.share_of_label(layer.heads, layer.head_count, rank)
        numel = numel * (stop - start) // layer.head_count
    return numel
