"""Channel operator parallelism: convolutions split in filters, input channels or groups.

A rank that has some of the filters makes some of the channels; the next convolution may take those
as they are, multiply its part of the weights and add up the results over ranks (the two halves of
tensor parallelism, Shoeybi et al., "Megatron-LM", 2019, for convolutions as in Dryden et al.,
"Channel and filter parallelism for large-scale CNN training", SC 2019). Which arrays stay cut
between two convolutions is chosen by bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from workbench.errors import PlanError
from workbench.mesh import shares
from workbench.plan import Collective, Cut, CutLabel, LayerPlan, Plan
from workbench.strategies.strategy import Strategy
from workbench.traced import Flat, Label, Layer, Traced

AXIS = "channel"
_MOST_AT_ONCE = 12  # classes of arrays of which all combinations are tried


@dataclass(frozen=True)
class _Convolution:
    """One convolution as this strategy sees it: labels and numbers of its channels, its groups."""

    layer: Layer
    source: Label
    made: Label
    inputs: int
    outputs: int
    in_groups: bool

    def choice(self, source_cut: bool) -> str:
        if self.in_groups:
            return "groups"
        return "channels" if source_cut else "filters"


def cut(plan: Plan) -> Plan:
    """Split every convolution that can be split, and keep its output cut where that sends less."""
    degree = plan.mesh.degree(AXIS)
    if plan.mesh.degree("spatial") > 1:
        raise PlanError(
            f"{plan.mesh} cuts channels and positions of the same arrays, which is not offered; "
            f"use spatial={degree * plan.mesh.degree('spatial')}, or data with one of the two."
        )
    for mix in plan.mixes:
        if mix.random:
            where = f"layer {mix.layer!r} ({mix.kind})" if mix.layer else f"{mix.kind}.forward"
            raise PlanError(f"{plan.mesh}: {where} draws {mix.operation}; {mix.advice}.")
    found = [c for planned in plan.layers if (c := _convolution(planned.layer, degree))]
    if not found:
        raise PlanError(_nothing_to_split(plan, degree))
    free = _labels_that_can_be_cut(plan, found, degree)
    kept = _cheapest(plan, found, free, degree)
    plan = replace(
        plan,
        cut_labels=(
            *plan.cut_labels,
            *(CutLabel(str(label), AXIS) for label in sorted(map(str, kept))),
        ),
    )
    split = {c.layer.name: c for c in found}
    layers = tuple(_planned(plan, planned, split, kept) for planned in plan.layers)
    plan = replace(plan, layers=layers)
    collectives = [c for one in found for c in _collectives(plan, one, kept, degree)]
    return plan.adding(collectives=collectives, notes=_notes(plan, split))


def _convolution(layer: Layer, degree: int) -> _Convolution | None:
    """Return what can be split of a layer; None if nothing can."""
    weight = next((p for p in layer.parameters if p.name.split(".")[-1] == "weight"), None)
    if layer.role != "conv" or weight is None or not layer.arguments:
        return None
    source, made = layer.arguments[0], layer.results[0]
    if len(source.shape) != len(weight.shape):  # an input without a dim of samples
        return None
    inputs, outputs = source.shape[1], made.shape[1]
    if layer.groups > 1:
        single = inputs == layer.groups == outputs
        if layer.groups < degree or (layer.groups % degree and not single):
            return None
    elif outputs < degree and inputs < degree:
        return None
    return _Convolution(layer, source.labels[1], made.labels[1], inputs, outputs, layer.groups > 1)


def _labels_that_can_be_cut(plan: Plan, found: list[_Convolution], degree: int) -> list[str]:
    """Return the labels of channels all of whose readers can do with a part."""
    candidates = {c.made: c.outputs for c in found if isinstance(c.made, str) and c.made}
    whole = {name for mix in plan.mixes for label in mix.labels for name in _names(label)}
    whole |= {name for array in plan.outputs for label in array.labels for name in _names(label)}
    split = {c.layer.name for c in found}
    for planned in plan.layers:
        layer = planned.layer
        whole |= {name for refusal in layer.refusals for name in refusal.labels}
        whole |= {
            name
            for array in (*layer.arguments, *layer.results)
            for dim, label in enumerate(array.labels)
            for name in _names(label)
            if not _takes(layer, array, dim, label, layer.name in split)
        }
    return [
        label
        for label, size in candidates.items()
        if size >= degree and isinstance(label, str) and label not in whole
    ]


def _takes(layer: Layer, array: Traced, dim: int, label: Label, is_split: bool) -> bool:
    """Return whether ``layer`` can do with a part of the channels that ``label`` counts."""
    if isinstance(label, Flat) or dim != 1 or not label.startswith("out:"):
        return False
    if layer.role == "conv":
        return is_split
    passes = len(layer.arguments) == 1 and all(
        len(result.labels) > 1 and result.labels[1] == layer.arguments[0].labels[1]
        for result in layer.results
    )
    if layer.role == "channelwise":
        return passes
    weightless = not layer.parameters and not layer.buffers
    return layer.role == "plain" and passes and weightless and layer.window(1) is None


def _names(label: Label) -> list[str]:
    return [name for name, _ in label.parts if name] if isinstance(label, Flat) else [label]


def _cheapest(
    plan: Plan, found: list[_Convolution], free: list[str], degree: int
) -> frozenset[Label]:
    """Return the labels to keep cut, so that the busiest rank sends least.

    All combinations of a few are tried; of many, one label after the other is turned round for as
    long as that helps.
    """

    def cost(kept: frozenset[Label]) -> tuple[int, int]:
        moved = [c for one in found for c in _collectives(plan, one, kept, degree)]
        busiest = max(
            sum(c.sent_bytes(degree, index, (plan.batch.size,)) for c in moved)
            for index in range(degree)
        )
        return busiest, -len(kept)

    if len(free) <= _MOST_AT_ONCE:
        picks = product((False, True), repeat=len(free))
        every = (
            frozenset[Label](label for label, keep in zip(free, pick, strict=True) if keep)
            for pick in picks
        )
        return min(every, key=cost)
    best: frozenset[Label] = frozenset(free)
    while True:
        nearest = min((best ^ {label} for label in free), key=cost)
        if cost(nearest) >= cost(best):
            return best
        best = nearest


def _splits(one: _Convolution, kept: frozenset[Label], degree: int) -> str:
    """Return how a convolution is split, given which labels stay cut; "" if it stays whole."""
    choice = one.choice(one.source in kept)
    if choice == "filters" and one.outputs < degree:
        return ""
    return choice


def _collectives(
    plan: Plan, one: _Convolution, kept: frozenset[Label], degree: int
) -> list[Collective]:
    """Return what a convolution costs: nothing where what is made cut stays cut."""
    choice = _splits(one, kept, degree)
    name, made = one.layer.name, one.layer.results[0]
    stays = one.made in kept
    if not choice or (choice != "channels" and stays):
        return []
    rest = made.numel // one.outputs // plan.batch.size
    own = [size * rest for size in shares(one.outputs, degree)]
    others = tuple(sum(own) - mine for mine in own)

    def collective(what: str, operation: str, sizes: tuple[int, ...], phase: str) -> Collective:
        return Collective(
            f"{name}: {what}",
            operation,  # type: ignore[arg-type]
            (AXIS,),
            max(sizes),
            one.layer.itemsize,
            phase,  # type: ignore[arg-type]
            times=plan.batch.accumulate,
            shares=sizes,
            per_sample=True,
        )

    total = (sum(own),) * degree
    if choice != "channels":
        there = collective("whole output", "all_gather", tuple(own), "forward")
        back = collective("gradient of the whole output", "exchange", others, "backward")
    elif stays:
        there = collective("sum of outputs", "exchange", others, "forward")
        back = collective("gradients of outputs", "all_gather", tuple(own), "backward")
    else:
        there = collective("sum of outputs", "all_reduce", total, "forward")
        back = collective("gradients of outputs", "all_reduce", total, "backward")
    return [there, back] if made.gradient else [there]


def _planned(
    plan: Plan, planned: LayerPlan, split: dict[str, _Convolution], kept: frozenset[Label]
) -> LayerPlan:
    layer = planned.layer
    into = plan.cuts_of(layer.arguments[0]) if layer.arguments else ()
    out = plan.cuts_of(layer.results[0]) if layer.results else ()
    parameters: list[tuple[str, Cut]] = []
    choice = planned.choice
    if layer.name in split:
        choice = _splits(split[layer.name], kept, plan.mesh.degree(AXIS))
        # In a transposed convolution the weight's first dim counts the inputs.
        turned = layer.kind.startswith("ConvTranspose")
        for parameter in layer.parameters:
            is_weight = parameter.name.split(".")[-1] == "weight"
            if choice in ("filters", "channels") and is_weight:
                parameters.append(
                    (parameter.name, Cut(int((choice == "channels") != turned), AXIS))
                )
            elif choice == "groups" or (choice == "filters" and not is_weight):
                parameters.append((parameter.name, Cut(0, AXIS)))
    elif layer.role == "channelwise" and any(c.dim == 1 and c.axis == AXIS for c in into):
        prefix = layer.parameters[0].name.rpartition(".")[0] if layer.parameters else layer.name
        state = [p.name for p in layer.parameters]
        state += [f"{prefix}.{b.name}".lstrip(".") for b in layer.buffers if b.shape]
        parameters += [(name, Cut(0, AXIS)) for name in state]
    return replace(
        planned,
        input=(*planned.input, *(c for c in into if c not in planned.input)),
        output=(*planned.output, *(c for c in out if c not in planned.output)),
        parameters=(*planned.parameters, *parameters),
        choice=choice,
    )


def _nothing_to_split(plan: Plan, degree: int) -> str:
    convolutions = [p.layer for p in plan.layers if p.layer.role == "conv" and p.layer.arguments]
    if not convolutions:
        return (
            f"{plan.mesh} splits convolutions, and this model has none; use data={degree}, or "
            f"spatial={degree} for large images."
        )
    widest = max(max(c.input_shape[1], c.output_shape[1]) for c in convolutions)
    return (
        f"{plan.mesh}: no convolution can be split in {degree}. The widest has {widest} channels, "
        f"groups are split only whole; the nearest is channel={max(2, min(widest, degree - 1))}."
    )


def _notes(plan: Plan, split: dict[str, _Convolution]) -> list[str]:
    ways: dict[str, list[str]] = {}
    for planned in plan.layers:
        if planned.layer.role == "conv":
            way = planned.choice if planned.layer.name in split else ""
            ways.setdefault(way, []).append(planned.layer.name)
    words = {
        "filters": "split in filters",
        "channels": "split in input channels, results added up",
        "groups": "split in groups",
        "": "whole on every rank, as it cannot be split evenly",
    }
    return [f"{words[way]}: {', '.join(dict.fromkeys(names))}" for way, names in ways.items()]


STRATEGY = Strategy(
    axis=AXIS,
    family="operator parallel",
    title="Channel (each rank a part of the filters)",
    summary=(
        "Convolutions are split in filters, input channels or groups; channels stay split from one "
        "layer to the next where that sends fewer bytes."
    ),
    cut=cut,
)
