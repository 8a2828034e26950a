"""Spatial operator parallelism: every rank holds a part of each image, with halos for windows.

The model's input is cut along its height, width or depth, and so is every array on the way that
still has that dim. A windowed layer fetches the rows that its windows reach into ("halo exchange",
Dryden et al., "Improving strong-scaling of CNN training by exploiting finer-grained parallelism",
IPDPS 2019); norms add up their statistics; a layer at the end that needs everything gathers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

from workbench.mesh import shares
from workbench.plan import Collective, Cut, CutLabel, LayerPlan, Plan
from workbench.strategies.obstacles import check_calls, check_layers, check_mixes
from workbench.strategies.spatial_dims import cut_labels
from workbench.strategies.strategy import Strategy
from workbench.traced import Flat, Layer, Operation, Phase, Traced, lead

AXIS = "spatial"
Kind = TypeVar("Kind", Cut, CutLabel)
_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def declare(plan: Plan) -> Plan:
    """Say which dims are cut and which arrays are gathered, before other axes cut features."""
    labels = cut_labels(plan)
    plan = replace(plan, cut_labels=(*plan.cut_labels, *labels))
    check_mixes(plan, {c.label for c in labels})
    check_layers(plan, {c.label for c in labels})
    return replace(plan, whole=(*plan.whole, *_gathered(plan)))


def cut(plan: Plan) -> Plan:
    """Cut what :func:`declare` has said, and say what travels."""
    labels = _own(plan.cut_labels)
    layers = tuple(_planned(plan, planned) for planned in plan.layers)
    plan = replace(plan, layers=layers)
    check_calls(plan)
    collectives = [
        replace(moved, call=number)
        for number, planned in enumerate(layers)
        for moved in _collectives(plan, planned)
    ]
    plan = plan.adding(collectives=collectives, notes=_notes(plan, labels))
    return _at_the_ends(plan)


def _own(cuts: Iterable[Kind]) -> tuple[Kind, ...]:
    """Return which of the cuts are of this axis."""
    return tuple(cut for cut in cuts if cut.axis == AXIS)


def _gathered(plan: Plan) -> tuple[Flat, ...]:
    """Return the flattened dims that are better gathered, or have to be.

    A linear layer can multiply the columns that a rank has and add up the results, unless it is
    itself split by ``tensor``; every other layer wants the whole. Chosen by bytes.
    """
    flats = {
        label: None
        for planned in plan.layers
        for array in planned.layer.results
        for label in array.labels
        if isinstance(label, Flat) and plan.cuts_of(array)
    }
    found = []
    for flat in flats:
        readers = [
            planned.layer
            for planned in plan.layers
            if any(flat in array.labels for array in planned.layer.arguments)
        ]
        must = (
            not readers
            or any(layer.role != "linear" for layer in readers)
            or plan.mesh.degree("tensor") > 1
            or any(flat in mix.labels for mix in plan.mixes)
            or any(flat in array.labels for array in plan.outputs)
        )
        if must or _bytes_to_gather(plan, flat) < sum(_bytes_to_add(plan, r) for r in readers):
            found.append(flat)
    return tuple(found)


def _bytes_to_gather(plan: Plan, flat: Flat) -> int:
    """Return what the busiest rank sends to gather the array that is flattened, there and back."""
    sent = [0]
    for planned in plan.layers:
        layer = planned.layer
        if layer.role == "flatten" and layer.results and flat in layer.results[0].labels:
            for c in _gathering(plan, planned, layer.arguments[0], "whole input"):
                group = plan.mesh.degree(AXIS)
                sent += [c.sent_bytes(group, i, (plan.batch.size,)) for i in range(group)]
    return max(sent) * 2


def _bytes_to_add(plan: Plan, layer: Layer) -> int:
    outputs = layer.results[0]
    one = Collective("", "all_reduce", (AXIS,), outputs.numel, outputs.itemsize, "forward")
    return 2 * one.sent_bytes(plan.mesh.degree(AXIS), 0)


def _planned(plan: Plan, planned: LayerPlan) -> LayerPlan:
    layer = planned.layer
    into = plan.cuts_of(layer.arguments[0]) if layer.arguments else ()
    out = plan.cuts_of(layer.results[0]) if layer.results else ()
    mine = [c for c in into if c.axis == AXIS]
    choice = planned.choice
    touched = any(
        c.axis == AXIS for array in (*layer.arguments, *layer.results) for c in plan.cuts_of(array)
    )
    lost = bool(mine) and not any(c.axis == AXIS for c in out)
    if (layer.role == "opaque" and touched) or (layer.role == "flatten" and lost):
        choice = "gather"
    elif layer.role == "linear" and _adds_up(layer, mine):
        choice = "channels"
    return replace(
        planned,
        input=(*planned.input, *(c for c in into if c not in planned.input)),
        output=(*planned.output, *(c for c in out if c not in planned.output)),
        choice=choice,
    )


def _adds_up(layer: Layer, cuts: Iterable[Cut]) -> bool:
    """Return whether a linear layer has some columns of what it reads here."""
    return any(cut.axis == AXIS and cut.dim == len(layer.input_shape) - 1 for cut in cuts)


def _collectives(plan: Plan, planned: LayerPlan) -> list[Collective]:
    layer, name = planned.layer, planned.layer.name
    if layer.role == "opaque":
        if planned.choice != "gather":
            return []
        return [
            c
            for number, array in enumerate(layer.arguments)
            for c in _gathering(plan, planned, array, f"input {number}")
        ]
    if layer.role == "flatten" and planned.choice == "gather":
        return _gathering(plan, planned, layer.arguments[0], "whole input")
    if layer.role == "linear" and _adds_up(layer, planned.input):
        each, per_sample = _per_sample(plan, layer.results[0], layer.results[0].numel)
        there = Collective(
            f"{name}: outputs",
            "all_reduce",
            (AXIS,),
            each,
            layer.itemsize,
            "forward",
            times=plan.batch.accumulate,
            per_sample=per_sample,
        )
        back = replace(there, name=f"{name}: gradients of outputs", phase="backward")
        learns = [p.trainable for p in layer.parameters if p.name.split(".")[-1] == "weight"]
        flows = layer.arguments[0].gradient or all(learns)
        return [there, back] if flows and layer.results[0].gradient else [there]
    return _halos(plan, planned)


def _at_the_ends(plan: Plan) -> Plan:
    """Cut what goes into the model, what comes out of it, and the targets of the loss.

    An output along whose cut the loss is no sum of parts is gathered before the loss.
    """
    inputs = _own(plan.cuts_of(lead(plan.inputs)))
    made = _own(plan.cuts_of(plan.outputs[0])) if len(plan.outputs) == 1 else ()
    target = _own(plan.cuts_of(plan.targets)) if plan.targets else ()
    plan = replace(plan, input=inputs, made=made)
    if plan.targets is None:  # nobody asks for a loss
        return plan
    if {(c.axis, c.part) for c in made} == {(c.axis, c.part) for c in target}:
        return replace(plan, output=made, target=target)
    whole = LayerPlan(Layer("output", "", (), ()))
    gathered = _gathering(plan, whole, plan.outputs[0], "whole")
    if plan.stages:  # ranks of other stages have no outputs
        last = (len(plan.stages) - 1) % plan.mesh.degree("pipeline")
        gathered = [replace(moved, places=(last,)) for moved in gathered]
    return plan.adding(
        collectives=gathered,
        notes=["the loss is no sum over positions, so the output is gathered on every rank"],
    )


def _halos(plan: Plan, planned: LayerPlan) -> list[Collective]:
    layer = planned.layer
    halo = planned.halo(plan.mesh) if layer.windows else None
    if halo is None:
        return []
    array = layer.arguments[0]
    sent, received = (list(map(f, range(halo.size))) for f in (halo.sent, halo.received))
    if not any(sent):
        return []
    rows = prod(window.size for window in halo.windows)
    others = [cut for cut in plan.cuts_of(array) if cut.axis != AXIS]
    if planned.choice == "groups" and not any(cut.dim == 1 for cut in others):
        others.append(Cut(1, planned.feature_axis))  # a rank takes the channels of its groups

    def numbers(of: list[int]) -> list[int]:
        """Return, for each rank, the numbers in those rows: it may have some channels of them."""
        return [
            of[plan.mesh.coordinates(rank)[AXIS]] * _numel(plan, array, others, rank) // rows
            for rank in range(plan.ranks)
        ]

    there = _collective(plan, f"{layer.name}: halo", "exchange", array, numbers(sent), "forward")
    if not array.gradient:
        return [there]
    name = f"{layer.name}: halo gradients"
    return [there, _collective(plan, name, "exchange", array, numbers(received), "backward")]


def _gathering(plan: Plan, planned: LayerPlan, array: Traced, what: str) -> list[Collective]:
    """Return what it costs to gather ``array`` on every rank, and to send its gradient back."""
    cuts = plan.cuts_of(array)
    if not _own(cuts) or plan.mesh.degree(AXIS) == 1:
        return []
    own = [_numel(plan, array, cuts, rank) for rank in range(plan.ranks)]
    name = f"{planned.layer.name}: {what}"
    there = _collective(plan, name, "all_gather", array, own, "forward")
    if not array.gradient:
        return [there]
    others = [
        sum(own[peer] for peer in plan.mesh.group(rank, AXIS)) - own[rank]
        for rank in range(plan.ranks)
    ]
    name = f"{planned.layer.name}: gradient of {'the ' if what == 'whole input' else ''}{what}"
    return [there, _collective(plan, name, "exchange", array, others, "backward")]


def _numel(plan: Plan, array: Traced, cuts: Iterable[Cut], rank: int) -> int:
    return prod(stop - start for start, stop in plan.share(array.shape, cuts, rank))


def _collective(
    plan: Plan,
    name: str,
    operation: Operation,
    array: Traced,
    numbers: Sequence[int],
    phase: Phase,
) -> Collective:
    """Return a collective along the axis, given what each rank of the mesh puts in."""
    scaled = [_per_sample(plan, array, numel) for numel in numbers]
    each = tuple(numel for numel, _ in scaled)
    return Collective(
        name,
        operation,
        (AXIS,),
        max(each),
        array.itemsize,
        phase,
        times=plan.batch.accumulate,
        shares=tuple(each[peer] for peer in plan.mesh.group(0, AXIS)),
        by_rank=each,
        per_sample=scaled[0][1],
    )


def _per_sample(plan: Plan, array: Traced, numel: int) -> tuple[int, bool]:
    """Return ``numel`` for one sample, if dim 0 counts samples; else as it is."""
    counts = bool(array.shape) and array.shape[0] % plan.batch.size == 0
    return (numel // plan.batch.size, True) if counts else (numel, False)


def _notes(plan: Plan, labels: tuple[CutLabel, ...]) -> list[str]:
    notes = []
    for c in labels:
        dim = int(c.label.removeprefix("dim"))
        size, parts = lead(plan.inputs).shape[dim], plan.mesh.parts(AXIS, c.part)
        sizes = sorted(set(shares(size, parts)), reverse=True)
        rows = " or ".join(map(str, sizes))
        notes.append(
            f"dim {dim} of the input ({_title(lead(plan.inputs), dim)}, {size}) is cut in {parts}: "
            f"each rank owns {rows}"
        )
        if parts > size:
            idle = parts - size
            notes.append(
                f"{idle} of {parts} ranks own nothing of dim {dim} and have little to do; "
                f"spatial={size} is the most that pays"
            )
    gathered = [p.layer.name for p in plan.layers if p.choice == "gather"]
    if gathered:
        notes.append(f"gathered on every rank before: {', '.join(dict.fromkeys(gathered))}")
    return notes


def _title(array: Traced, dim: int) -> str:
    names = _NAMES.get(len(array.shape) - 2, ())
    return names[dim - 2] if 0 <= dim - 2 < len(names) else "positions"


STRATEGY = Strategy(
    axis=AXIS,
    family="operator parallel",
    title="Spatial (each rank a part of every image)",
    summary=(
        "Every image is cut in height, width or depth; layers fetch the rows that their windows "
        "reach into from the neighbours."
    ),
    cut=cut,
    options={"spatial_dims": (), "fallback": ("refuse", "gather")},
    grid=True,
    remedies={
        "compute": (
            "larger images, or data where the batch has several: halos are computed around "
            "every part"
        ),
        "comm": "larger images, or fewer ranks: halos and gradients travel",
        "wait": "degrees that divide the image, or fewer other programs beside it",
        "optimizer": "fewer ranks: here every rank updates all weights",
        "load": "data: here every rank reads whole images",
    },
)
