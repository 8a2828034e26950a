"""What the plan says of messages between ranks, in the language that is spoken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.plan import Collective, Plan, in_binary_units
from workbench.strategies.pipeline import stage_of
from workbench.ui.language import text, translate

PHASES = ("forward", "backward", "update", "average", "record")
"""In the order of a step."""


@dataclass(frozen=True)
class Travel:
    """One collective of a step that a layer needs.

    Attributes
    ----------
    sent_bytes:
        Predicted: what the rank sends of it in a step that sends most.
    others:
        How many parameters of other layers travel with those of this one.
    """

    collective: Collective
    sent_bytes: int
    others: int = 0

    def __str__(self) -> str:
        """Say what travels, when, how, along which axes and how much."""
        moved = self.collective
        what = tail_of(moved.name)
        if self.others:
            what = text("travel.with", what=what, count=self.others)
        return text(
            "travel.line",
            phase=text(f"phase_of.{moved.phase}"),
            what=what,
            how=operation(moved.operation),
            axes=" + ".join(moved.axes),
            bytes=in_binary_units(self.sent_bytes).replace(" ", "\u00a0"),
        )


def operation(name: str) -> str:
    """Return how ranks talk: ``"all_gather"`` in words."""
    return text(f"operation.{name}")


def whole_name(name: str) -> str:
    """Return the name of a collective, ``"fc: whole output"``; names of layers stay as they are."""
    said = translate(name)
    layer, colon, tail = name.partition(": ")
    return said if said != name or not colon else f"{layer}: {translate(tail)}"


def tail_of(name: str) -> str:
    """Return what travels, without the layer that it is named after."""
    said = translate(name)
    tail = name.partition(": ")[2]
    # A message of a pipeline is named after a stage, which belongs to what is said.
    return said if not tail or name.startswith("stage ") else translate(tail)


def travels_of(plan: Plan, number: int) -> tuple[Travel, ...]:
    """Return what travels in a step for the call of a layer with that number in the plan.

    A message of a pipeline belongs to the layer whose result it is, or to the last one before.
    """
    layer = plan.layers[number].layer
    names = {array.name for array in (*layer.parameters, *layer.tied)}
    inside = "" if layer.name == layer.kind else f"{layer.name}."
    names |= {f"{inside}{buffer.name}" for buffer in layer.buffers}
    messages = _messages(plan, number)
    found = []
    for moved in plan.collectives:
        if moved.phase == "start":
            continue
        own = moved.name.startswith(f"{layer.name}: ") and moved.call in (None, number)
        own = own or moved.name in messages
        with_it = _parameters(plan, moved)
        if own or names & with_it:
            sent = max(plan.sent_by(moved, rank) for rank in range(plan.ranks))
            if moved.phase == "average":  # once in a period of steps
                sent = -(-sent // plan.period)
            found.append(Travel(moved, sent, 0 if own else len(with_it - names)))
    return tuple(sorted(found, key=lambda travel: PHASES.index(travel.collective.phase)))


def between_stages(plan: Plan, number: int) -> tuple[Travel, ...]:
    """Return the messages of the stage of a layer that other layers of it send or receive."""
    stage = stage_of(plan, number)
    names = {
        name
        for crossing in plan.crossings
        for name in (crossing.name, crossing.gradient_name)
        if stage in (crossing.start, crossing.stop)
    } - _messages(plan, number)
    return tuple(
        Travel(moved, max(plan.sent_by(moved, rank) for rank in range(plan.ranks)))
        for moved in plan.collectives
        if moved.name in names
    )


def _parameters(plan: Plan, moved: Collective) -> set[str]:
    """Return the parameters and buffers that travel together in a collective of several layers."""
    if moved.phase != "update" or moved.operation != "all_gather":
        return set(moved.arrays)
    places = set(moved.places)
    return {n for n, _ in plan.updates if not places or places & set(plan.holders(n))}


def _messages(plan: Plan, number: int) -> set[str]:
    """Return the names of the messages that are of this layer."""
    found = set()
    for crossing in plan.crossings:
        module = crossing.source.call.module
        sent = [n for n in _of_stage(plan, crossing.start) if _is_in(plan, n, module)]
        last = sent or list(_of_stage(plan, crossing.start))
        received = list(_of_stage(plan, crossing.stop))
        if number in (*last[-1:], *received[:1]):
            found |= {crossing.name, crossing.gradient_name}
    return found


def _of_stage(plan: Plan, stage: int) -> Sequence[int]:
    return [
        n
        for n, planned in enumerate(plan.layers)
        if planned.layer.arguments and stage_of(plan, n) == stage
    ]


def _is_in(plan: Plan, number: int, module: str) -> bool:
    name = plan.layers[number].layer.name
    return name == module or not module or name.startswith(f"{module}.")
