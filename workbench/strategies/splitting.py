"""Layers split in what they make or in what they read: shared by ``tensor`` and ``channel``.

A rank that has some outputs of a layer (filters of a convolution, columns of a linear layer) makes
some of the features. The next layer may take those as they are, multiply its part of the weights
and add up the results over ranks. Which features stay cut between two layers is chosen by bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod

from workbench.mesh import shares
from workbench.plan import Collective, Cut, CutLabel, LayerPlan, Plan
from workbench.strategies import sequence
from workbench.strategies.classes import of_loss
from workbench.strategies.splittable import Splittable, is_exposed
from workbench.strategies.wording import notes
from workbench.traced import POSITIONS, SAMPLES, Flat, Label, Layer, Traced

MESSAGE_BYTES = 2**14  # one collective more costs as much time as so many bytes in one
MOST_AT_ONCE = 12  # classes of features of which all combinations are tried


def split(plan: Plan, axis: str, found: Sequence[Splittable]) -> Plan:
    """Split the layers in ``found`` over ``axis``; keep features cut where that sends less."""
    degree = plan.mesh.degree(axis)
    free = _labels_that_can_be_cut(plan, found, degree)
    kept = _cheapest(plan, axis, found, free)
    plan = replace(
        plan,
        cut_labels=(
            *plan.cut_labels,
            *(
                CutLabel(label, axis, units=_units(plan, label, kept))
                for label in sorted(map(str, kept))
            ),
            *(
                CutLabel(one.layer.heads, axis)
                for one in {one.layer.name: one for one in found}.values()
                if one.choice(kept, degree) == "heads"
            ),
            *sequence.labels(plan, axis),
        ),
    )
    by_name = {one.layer.name: one for one in found}
    layers = tuple(_planned(plan, axis, planned, by_name, kept) for planned in plan.layers)
    plan = replace(plan, layers=sequence.planned(plan, layers))
    collectives = _all_collectives(plan, axis, found, kept)
    collectives += [c for each in layers for c in sequence.gathering(plan, axis, each.layer)]
    return plan.adding(
        collectives=collectives, notes=[*notes(plan, axis, by_name), *sequence.note(plan, axis)]
    )


def _units(plan: Plan, label: Label, kept: frozenset[Label]) -> int:
    """Return into how many pieces code takes the features with ``label``, if they are kept cut."""
    return dict(plan.units).get(str(label), 0) if label in kept else 0


def _labels_that_can_be_cut(plan: Plan, found: Sequence[Splittable], degree: int) -> list[str]:
    """Return the labels of features all of whose readers can do with a part."""
    candidates = {one.made: one.features for one in found if isinstance(one.made, str) and one.made}
    whole = {name for mix in plan.mixes for label in mix.labels for name in _names(label)}
    whole |= {
        name
        for array in plan.outputs
        for label in array.labels
        for name in _names(label)
        if label != plan.class_label or array.labels.count(label) > 1
    }
    split_in = {one.layer.name: one for one in found}
    for planned in plan.layers:
        layer = planned.layer
        one = split_in.get(layer.name)
        whole |= {name for refusal in layer.refusals for name in refusal.labels}
        whole |= {
            name
            for arrays in (layer.arguments, layer.results)
            for array in arrays
            for dim, label in enumerate(array.labels)
            for name in _names(label)
            if not _takes(layer, array, dim, one, made=arrays is layer.results)
            or (layer.role == "channelwise" and is_exposed(layer, plan))
        }
    whole |= _crossing(plan)
    units = dict(plan.units)
    whole |= {
        str(one.made)
        for one in found
        if one.ways == ("groups",) and units.get(str(one.made), one.outputs) < one.outputs
    }
    return [
        label
        for label, size in candidates.items()
        if min(size, units.get(label, size)) >= degree
        and isinstance(label, str)
        and label not in whole
    ]


def _crossing(plan: Plan) -> set[str]:
    """Return the labels of what one stage of a pipeline gives another: that goes whole."""
    seen: dict[str, set[int]] = {}
    for stage in plan.stages:
        for index in stage.layers:
            layer = plan.layers[index].layer
            for array in (*layer.arguments, *layer.results):
                for name in (name for label in array.labels for name in _names(label)):
                    seen.setdefault(name, set()).add(stage.number)
    return {name for name, stages in seen.items() if len(stages) > 1}


def _takes(layer: Layer, array: Traced, dim: int, one: Splittable | None, made: bool) -> bool:
    """Return whether ``layer`` can do with a part of the features in ``dim`` of ``array``."""
    label = array.labels[dim]
    if layer.watched:
        return True
    if one is not None and one.things and made and dim == layer.feature_dim(array):
        return True
    if isinstance(label, Flat) or not label.startswith("out:"):
        return False
    if layer.role in ("conv", "linear", "embedding", "heads"):
        if one is None or dim != layer.feature_dim(array):
            return False
        return one.ways != ("heads",) and (made or one.ways != ("filters",))
    passes = len(layer.arguments) == 1 and all(
        len(result.labels) > dim and result.labels[dim] == layer.arguments[0].labels[dim]
        for result in layer.results
    )
    if layer.role == "channelwise":
        return dim == 1 and passes
    weightless = not layer.parameters and not layer.buffers
    return layer.role == "plain" and passes and weightless and layer.window(dim) is None


def _names(label: Label) -> list[str]:
    return [name for name, _ in label.parts if name] if isinstance(label, Flat) else [label]


def _cheapest(
    plan: Plan, axis: str, found: Sequence[Splittable], free: list[str]
) -> frozenset[Label]:
    """Return the labels to keep cut, so that the busiest rank sends least.

    All combinations of a few are tried; of many, one label after the other is turned round for as
    long as that helps.
    """
    degree = plan.mesh.degree(axis)

    def cost(kept: frozenset[Label]) -> tuple[int, int]:
        moved = _all_collectives(plan, axis, found, kept)
        busiest = max(
            sum(c.sent_bytes(degree, index, (plan.batch.size,)) for c in moved)
            for index in range(degree)
        )
        return busiest + MESSAGE_BYTES * len(moved), -len(kept)

    if len(free) <= MOST_AT_ONCE:
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


def _all_collectives(
    plan: Plan, axis: str, found: Sequence[Splittable], kept: frozenset[Label]
) -> list[Collective]:
    """Return what all layers cost, and the loss."""
    moved = [c for one in found for c in _collectives(plan, axis, one, kept)]
    last = [one.layer.name for one in found if one.made and one.made == plan.class_label]
    return [*moved, *of_loss(plan, axis, last[-1], kept)] if last else moved


def _collectives(
    plan: Plan, axis: str, one: Splittable, kept: frozenset[Label]
) -> list[Collective]:
    """Return what a layer costs: nothing where what is made cut stays cut."""
    degree = plan.mesh.degree(axis)
    choice = one.choice(kept, degree)
    name, made = one.layer.name, one.layer.results[0]
    stays = one.made in kept
    adds_up = choice in ("channels", "heads")
    if not choice or (not adds_up and stays):
        return []
    by_sample = made.counts_samples or _lost_samples(plan, made)
    rests = _beside(plan, axis, made, one.outputs * (plan.batch.size if by_sample else 1))
    own = shares(one.outputs, degree, _units(plan, one.made, kept))
    others = tuple(sum(own) - mine for mine in own)

    def collective(what: str, operation: str, features: Sequence[int], phase: str) -> Collective:
        """Return one in which ranks put in, for each position, so many ``features`` by place."""
        places = [plan.mesh.place(rank, axis) for rank in range(plan.ranks)]
        every = [features[place] * rest for place, rest in zip(places, rests, strict=True)]
        sizes = tuple(every[peer] for peer in plan.mesh.group(0, axis))
        return Collective(
            f"{name}: {what}",
            operation,  # type: ignore[arg-type]
            (axis,),
            max(sizes),
            one.layer.itemsize,
            phase,  # type: ignore[arg-type]
            times=plan.batch.accumulate,
            shares=sizes,
            by_rank=tuple(every) if len(set(rests)) > 1 else (),
            per_sample=by_sample,
        )

    total = (sum(own),) * degree

    def of_positions(found: list[Collective]) -> list[Collective]:
        """Return what it costs if the plan has the positions of what is made cut."""
        cut = CutLabel(POSITIONS, axis) in plan.cut_labels and POSITIONS in made.labels
        return sequence.collectives(plan, axis, found, made) if cut else found

    if choice == "heads" and len(one.layer.results) > 1:
        weights = _attention_weights(plan, axis, one.layer)
        moved = _collectives(
            plan, axis, replace(one, layer=replace(one.layer, results=(made,))), kept
        )
        return [*moved[:1], weights, *moved[1:]]
    if not adds_up:
        there = collective("whole output", "all_gather", own, "forward")
        back = collective("gradient of the whole output", "exchange", others, "backward")
    elif stays:
        there = collective("sum of outputs", "exchange", others, "forward")
        back = collective("gradients of outputs", "all_gather", own, "backward")
    else:
        there = collective("sum of outputs", "all_reduce", total, "forward")
        back = collective("gradients of outputs", "all_reduce", total, "backward")
        return of_positions([there, back] if made.gradient else [there])
    return [there, back] if made.gradient else [there]


def _beside(plan: Plan, axis: str, made: Traced, numel: int) -> list[int]:
    """Return how many times ``numel`` numbers of ``made`` each rank has if ``axis`` cuts nothing.

    That is the same for all unless another axis cuts positions.
    """
    cuts = [cut for cut in plan.cuts_of(made) if cut.axis != axis]
    ranges = (plan.share(made.shape, cuts, rank) for rank in range(plan.ranks))
    return [prod(stop - start for start, stop in each) // numel for each in ranges]


def _lost_samples(plan: Plan, made: Traced) -> bool:
    """Return whether dim 0 counts samples, of which code before has taken the label."""
    mixed = any(SAMPLES in _names(label) for mix in plan.mixes for label in mix.labels)
    return mixed and bool(made.shape) and made.shape[0] % plan.batch.size == 0


def _attention_weights(plan: Plan, axis: str, layer: Layer) -> Collective:
    """Return what it costs to give the attention weights of all heads to the caller."""
    weights = layer.results[1]
    averaged = len(weights.shape) < len(layer.results[0].shape) + 1
    numel = weights.numel // plan.batch.size
    heads = layer.head_count
    own = [size * numel // heads for size in shares(heads, plan.mesh.degree(axis))]
    sizes = tuple(numel for _ in own) if averaged else tuple(own)
    return Collective(
        f"{layer.name}: attention weights",
        "all_reduce" if averaged else "all_gather",
        (axis,),
        max(sizes),
        layer.itemsize,
        "forward",
        shares=sizes,
        per_sample=True,
    )


def _planned(
    plan: Plan,
    axis: str,
    planned: LayerPlan,
    by_name: dict[str, Splittable],
    kept: frozenset[Label],
) -> LayerPlan:
    layer = planned.layer
    into = plan.cuts_of(layer.arguments[0]) if layer.arguments else ()
    out = plan.cuts_of(layer.results[0]) if layer.results else ()
    parameters: list[tuple[str, Cut]] = []
    choice = planned.choice
    if layer.name in by_name:
        one = by_name[layer.name]
        choice = one.choice(kept, plan.mesh.degree(axis))
        if choice:
            parameters += one.parameter_cuts(
                choice, axis, lambda label: _units(plan, label, kept), one.made in kept
            )
    elif layer.role == "channelwise" and any(c.dim == 1 and c.axis == axis for c in into):
        prefix = layer.parameters[0].name.rpartition(".")[0] if layer.parameters else layer.name
        state = [p.name for p in layer.parameters]
        state += [f"{prefix}.{b.name}".lstrip(".") for b in layer.buffers if b.shape]
        units = next(c.units for c in into if c.dim == 1 and c.axis == axis)
        parameters += [(name, Cut(0, axis, units=units)) for name in state]
    return replace(
        planned,
        input=(*planned.input, *(c for c in into if c.axis == axis)),
        output=(*planned.output, *(c for c in out if c.axis == axis)),
        parameters=(*planned.parameters, *parameters),
        choice=choice,
    )
