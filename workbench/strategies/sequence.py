"""Sequence parallelism between the layers of ``tensor``: norms and dropout on shares of positions.

A layer whose results are added up over ranks gives each rank the sums of its positions only, which
costs half of what giving all to all does; the layer after the norm that follows gathers them for
the other half. In between ranks keep and compute a part (Korthikanti et al., "Reducing activation
recomputation in large transformer models", 2022, section 4.2.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from workbench.errors import PlanError
from workbench.plan import Collective, CutLabel, LayerPlan, Plan
from workbench.strategies.obstacles import check_calls
from workbench.traced import POSITIONS, Layer, Traced

AXIS = "tensor"
OPTION = "sequence"
ADD_UP = ("channels", "heads")
"""Choices of layers whose results are added up over ranks."""


def layers_to_cut(plan: Plan, axis: str) -> frozenset[str]:
    """Return the layers that give all ranks sums of which each could do with some positions."""
    found = {
        planned.layer.name: planned.layer
        for planned in plan.layers
        if planned.choice in ADD_UP and not any(cut.axis == axis for cut in planned.output)
    }
    return frozenset(name for name, layer in found.items() if _has_positions(layer))


def _has_positions(layer: Layer) -> bool:
    made = layer.results[0]
    return len(made.shape) > 2 and layer.role in ("linear", "embedding", "heads")


def nothing_to_cut(plan: Plan, why: str = "") -> PlanError:
    """Return the sentence of a model in which nothing lies between such layers."""
    what = why or (
        "no layer of this model adds up results of shape (samples, positions, features) over ranks"
    )
    return PlanError(
        f'{plan.mesh} with sequence="split" cuts the positions between layers, and {what}; use '
        'sequence="whole".'
    )


def labels(plan: Plan, axis: str) -> tuple[CutLabel, ...]:
    """Return the label of positions, if some layer's results have them cut."""
    cut = any(POSITIONS in made.labels for each in plan.layers for made in each.layer.results[:1])
    return (CutLabel(POSITIONS, axis),) if cut and axis == AXIS else ()


def collectives(
    plan: Plan, axis: str, whole: Sequence[Collective], made: Traced
) -> list[Collective]:
    """Return what adding up costs if each rank gets some positions of ``made``.

    ``whole`` is what it costs to give all of it to all ranks, and to add up the gradients.
    """
    own = _numbers(plan, axis, made, whole[0].per_sample)
    others = tuple(sum(own) - mine for mine in own)
    there = replace(whole[0], operation="exchange", numel=max(others), shares=others)
    back = [replace(c, operation="all_gather", numel=max(own), shares=own) for c in whole[1:]]
    return [there, *back]


def gathering(plan: Plan, axis: str, layer: Layer) -> list[Collective]:
    """Return what it costs that ``layer``, given some positions, gives all."""
    if axis != AXIS or not is_gathered(layer):
        return []
    made = replace(layer.results[0], labels=layer.arguments[0].labels)
    own = _numbers(plan, axis, made, True)
    others = tuple(sum(own) - mine for mine in own)
    there = Collective(
        f"{layer.name}: whole output",
        "all_gather",
        (axis,),
        max(own),
        made.itemsize,
        "forward",
        times=plan.batch.accumulate,
        shares=own,
        per_sample=True,
    )
    back = replace(
        there,
        name=f"{layer.name}: gradient of the whole output",
        operation="exchange",
        numel=max(others),
        shares=others,
        phase="backward",
    )
    return [there, back] if made.gradient else [there]


def is_gathered(layer: Layer) -> bool:
    """Return whether ``layer`` is given some positions and gives all."""
    given = layer.arguments[0].labels if layer.arguments else ()
    made = layer.results[0].labels if layer.results else ()
    return POSITIONS in given and POSITIONS not in made


def _numbers(plan: Plan, axis: str, made: Traced, per_sample: bool) -> tuple[int, ...]:
    """Return how many numbers of ``made`` each rank along ``axis`` has the positions of."""
    dim = made.labels.index(POSITIONS)
    rest = made.numel // made.shape[dim] // (plan.batch.size if per_sample else 1)
    peers = plan.mesh.group(0, axis)
    runs = [plan.share_of_label(POSITIONS, made.shape[dim], rank) for rank in peers]
    return tuple((stop - start) * rest for start, stop in runs)


def planned(plan: Plan, layers: Iterable[LayerPlan]) -> tuple[LayerPlan, ...]:
    """Return ``layers`` with those that give all positions marked.

    Raises
    ------
    PlanError
        If a layer is called on arrays of two sizes of which the shares look alike.
    """
    made = tuple(
        replace(each, choice="gather output") if is_gathered(each.layer) else each
        for each in layers
    )
    check_calls(replace(plan, layers=made))
    return made


def note(plan: Plan, axis: str) -> list[str]:
    """Return what lies between layers."""
    between = [
        each.layer.name
        for each in plan.layers
        if each.layer.arguments
        and POSITIONS in each.layer.arguments[0].labels
        and each.choice in ("", "gather output")
    ]
    if axis != AXIS or not between:
        return []
    return [
        "positions of the sequence are cut where features are not: ranks compute and keep theirs "
        f"in {', '.join(dict.fromkeys(between))}"
    ]
