"""Where a model is divided into stages, and where between its layers positions are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from workbench.limits import bytes_of
from workbench.plan import Plan
from workbench.schedules import SCHEDULES, most_in_flight
from workbench.strategies import pipeline

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.dividing import Room
    from workbench.plan.stages import Call
    from workbench.profile import Profile


def arranged(
    start: Plan,
    model: nn.Module,
    inputs: Sequence[Tensor],
    found: Profile,
    compose: Callable[[Plan, Profile], Plan],
) -> tuple[Plan, Profile]:
    """Divide the model into the stages of a pipeline, and cut positions, if that is asked for.

    What a stage gives the next decides which layers may leave ranks some positions, so stages begin
    where they began before that was known.
    """
    from workbench.layer_times import layer_times
    from workbench.profile import profile
    from workbench.sequencing import asked, cut_positions

    times = None
    if start.option("balance", "counted") == "measured" and start.mesh.degree(pipeline.AXIS) > 1:
        rows = max(start.batch.rows(start.mesh.replicas, 0))
        times = layer_times(model, inputs, rows, {layer.name for layer in found.layers})
    divided = _divided(start, model, inputs, found, times)
    if not asked(start):
        return divided, found
    again = partial(profile, model, *inputs, dims=(0,), features=True)
    found = cut_positions(divided, found, compose, lambda positions: again(positions=positions))
    entries = [stage.entry for stage in divided.stages if stage.entry is not None]
    return _divided(start, model, inputs, found, times, entries), found


def _divided(
    start: Plan,
    model: nn.Module,
    inputs: Sequence[Tensor],
    found: Profile,
    times: Mapping[Call, float] | None,
    entries: Sequence[Call] = (),
) -> Plan:
    if start.mesh.degree(pipeline.AXIS) == 1:
        return start
    from workbench.dividing import divide

    chunks = pipeline.chunks(start.option("schedule", "1f1b"), start.option("chunks", ""))
    split_at, room = start.option("split_at", ""), _room(start, chunks)
    made = divide(model, inputs, found, start.mesh, chunks, split_at, times, room, entries)
    return replace(start, stages=made.stages, crossings=made.crossings, held=made.held)


def _room(start: Plan, chunks: int) -> Room | None:
    """Return what a stage may keep if there is a limit; a rank's chunks get equal parts of it."""
    from workbench.dividing import Room

    limit = start.option("memory_limit", "")
    if not limit:
        return None
    ranks, micro = start.mesh.degree(pipeline.AXIS), start.batch.accumulate
    actions = SCHEDULES[start.option("schedule", "1f1b")].actions(ranks, chunks, micro)
    most = [-(-number // chunks) for number in most_in_flight(actions)] * chunks
    in_flight = [1] * len(most) if start.option("recompute", "no") == "yes" else most
    rows = max(start.batch.rows(start.mesh.replicas, 0))
    alike, _ = start.optimizer_state
    return Room(bytes_of(limit) // chunks, 2 + alike, tuple(in_flight), rows)
