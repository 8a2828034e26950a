"""Channel operator parallelism: convolutions split in filters, input channels or groups.

A rank that has some of the filters makes some of the channels; the next convolution may take those
as they are, multiply its part of the weights and add up the results over ranks (the two halves of
tensor parallelism, Shoeybi et al., "Megatron-LM", 2019, for convolutions as in Dryden et al.,
"Channel and filter parallelism for large-scale CNN training", SC 2019). Which arrays stay cut
between two convolutions is chosen by bytes.
"""

from __future__ import annotations

from collections.abc import Collection

from workbench.errors import PlanError
from workbench.plan import Plan
from workbench.strategies.nearest import fewer_ranks, replicas
from workbench.strategies.splittable import Splittable, splittable
from workbench.strategies.splitting import split
from workbench.strategies.strategy import Strategy
from workbench.strategies.wording import exposed_note
from workbench.traced import Layer

AXIS = "channel"


def cut(plan: Plan) -> Plan:
    """Split every convolution that can be split, and keep its output cut where that sends less."""
    degree = plan.mesh.degree(AXIS)
    tied = {array.name for planned in plan.layers for array in planned.layer.tied}
    found = splittable(plan, degree, lambda layer: convolution(layer, degree, tied))
    if not found:
        raise PlanError(_nothing_to_split(plan, tied))
    return split(plan, AXIS, found)


def convolution(layer: Layer, degree: int, tied: Collection[str] = ()) -> Splittable | None:
    """Return what can be split of a convolution; None if nothing can.

    ``tied`` are the parameters that several layers have.
    """
    weight = next((p for p in layer.parameters if p.name.split(".")[-1] == "weight"), None)
    if layer.role != "conv" or weight is None or not layer.arguments or layer.tied:
        return None
    if any(array.name in tied for array in layer.parameters):
        return None
    source, made = layer.arguments[0], layer.results[0]
    if len(source.shape) != len(weight.shape):  # an input without a dim of samples
        return None
    inputs, outputs = source.shape[1], made.shape[1]
    ways: tuple[str, ...] = ("filters", "channels")
    if layer.groups > 1:
        single = inputs == layer.groups == outputs
        if layer.groups < degree or (layer.groups % degree and not single):
            return None
        ways = ("groups",)
    elif outputs < degree and inputs < degree:
        return None
    return Splittable(layer, source.labels[1], made.labels[1], inputs, outputs, ways)


def _nothing_to_split(plan: Plan, tied: Collection[str]) -> str:
    convolutions = [p.layer for p in plan.layers if p.layer.role == "conv" and p.layer.arguments]
    instead = replicas(plan, AXIS)
    if not convolutions:
        ranks = plan.mesh.degree(AXIS) * plan.mesh.degree("tensor")
        tensor = plan.mesh.with_degree(AXIS, 1).with_degree("tensor", ranks)
        found = splittable(plan, ranks, lambda layer: _linear(layer, ranks))
        return f"{plan.mesh} splits convolutions, and this model has none; use {instead}" + (
            f", or {tensor} for its linear layers." if found else "."
        )
    widest = max(layer.output_shape[1] for layer in convolutions)
    nearest = fewer_ranks(
        plan,
        AXIS,
        widest,
        lambda degree: bool(splittable(plan, degree, lambda c: convolution(c, degree, tied))),
    )
    if nearest == instead and (read := exposed_note(plan)):
        return f"{plan.mesh} finds no convolution that can be split: {read}; use {instead}."
    return (
        f"{plan.mesh}: no convolution can be split in {plan.mesh.degree(AXIS)}. The widest makes "
        f"{widest} channels, groups are split only whole; the nearest is {nearest}."
    )


def _linear(layer: Layer, degree: int) -> Splittable | None:
    """Return what ``tensor`` can split of a linear layer of its own at least."""
    enough = layer.role == "linear" and layer.results and layer.output_shape[-1] >= degree
    if not enough or layer.tied:
        return None
    return Splittable(layer, "", "", 0, layer.output_shape[-1], ("filters",))


STRATEGY = Strategy(
    axis=AXIS,
    family="operator parallel",
    title="Channel (each rank a part of the filters)",
    summary=(
        "Convolutions are split in filters, input channels or groups; channels stay split from one "
        "layer to the next where that sends fewer bytes."
    ),
    cut=cut,
    remedies={
        "compute": "spatial or data: convolutions with few filters use a core less well",
        "comm": "spatial or data: sums of whole feature maps travel",
        "wait": "degrees that divide the numbers of filters, or fewer other programs beside it",
        "optimizer": "fewer layers that stay whole (print the plan)",
        "load": "data: here every rank reads the whole batch",
    },
)
