"""Tensor parallelism: the weights of every layer split over ranks, which share all samples.

Linear layers are split in columns (what they make) or rows (what they read). Where only code that
treats every feature alike lies between two of them, the first is split in columns and the second in
rows, and one all_reduce serves both (Shoeybi et al., "Megatron-LM", 2019, section 3). Attention is
split by heads, embeddings by features or by vocabulary, convolutions by filters and channels unless
``channel`` has them. A layer whose output other code needs whole has it gathered, and the plan says
what that costs.
"""

from __future__ import annotations

from workbench.errors import PlanError
from workbench.plan import Plan
from workbench.strategies import sequence
from workbench.strategies.channel import convolution
from workbench.strategies.splittable import Splittable, splittable
from workbench.strategies.splitting import split
from workbench.strategies.strategy import Strategy
from workbench.strategies.wording import exposed_note
from workbench.traced import Flat, Label, Layer

AXIS = "tensor"


def cut(plan: Plan) -> Plan:
    """Split every layer with weights that can be split."""
    degree = plan.mesh.degree(AXIS)
    with_heads = [p.layer for p in plan.layers if p.layer.head_count]
    fewest = min(with_heads, key=lambda layer: layer.head_count, default=None)
    if fewest is not None and fewest.head_count < degree:
        heads = fewest.head_count
        raise PlanError(
            f"{plan.mesh} splits attention by heads, and layer {fewest.name!r} has "
            f"{heads}; " + (f"use tensor={heads}." if heads > 1 else f"use data={degree}.")
        )
    users: dict[str, list[Layer]] = {}
    for planned in plan.layers:
        for array in (*planned.layer.parameters, *planned.layer.tied):
            users.setdefault(array.name, []).append(planned.layer)
    found = splittable(plan, lambda layer: _layer(layer, users, degree))
    if plan.mesh.degree("channel") > 1:  # which has the convolutions
        found = [one for one in found if one.layer.role != "conv"]
    if not found:
        raise PlanError(_nothing_to_split(plan, degree, users))
    return split(plan, AXIS, found)


def _layer(layer: Layer, users: dict[str, list[Layer]], degree: int) -> Splittable | None:
    """Return what can be split of a layer; None if nothing can."""
    if layer.role == "conv":
        return convolution(layer, degree) if _alone(layer, users) else None
    if not layer.arguments or not layer.results:
        return None
    made = layer.results[0]
    if layer.role == "heads":
        # A gradient of the attention weights is not carried.
        looked_at = any(result.gradient for result in layer.results[1:])
        enough = layer.head_count >= degree and _alone(layer, users) and not looked_at
        return Splittable(layer, "", "", 0, made.shape[-1], ("heads",)) if enough else None
    if layer.role not in ("linear", "embedding"):
        return None
    weights = [p for p in (*layer.parameters, *layer.tied) if len(p.shape) == 2]
    if len(weights) != 1 or not made.labels:
        return None
    label: Label = made.labels[-1]
    things: Flat | None = None
    tied = len({user.name for user in users[weights[0].name]}) > 1
    if tied and not all(
        not user.turned and user.role in ("linear", "embedding") and weights[0].shape[0] >= degree
        for user in users[weights[0].name]
    ):
        return None
    outputs = made.shape[-1]
    if layer.role == "embedding":
        if not tied and outputs < degree:
            return None
        return Splittable(
            layer, "", made.labels[-1], 0, outputs, ("channels",) if tied else ("filters",)
        )
    source = layer.arguments[0]
    if len(source.shape) < 2 or (outputs < degree and source.shape[-1] < degree):
        return None
    ways: tuple[str, ...] = ("filters",) if tied else ("filters", "channels")
    if isinstance(label, Flat) and not tied:  # several things side by side, each of them split
        things, label = label, label.parts[-1][0]
        ways = ("filters",)
    return Splittable(layer, source.labels[-1], label, source.shape[-1], outputs, ways, things)


def _alone(layer: Layer, users: dict[str, list[Layer]]) -> bool:
    """Return whether no other layer uses the parameters of this one, or of what is inside it."""
    names = {array.name for array in layer.parameters} | {name for name, _, _ in layer.by_heads}
    return not layer.tied and all(
        user.name == layer.name or (user.name.startswith(f"{layer.name}.") and not user.tied)
        for name in names
        for user in users.get(name, ())
    )


def _nothing_to_split(plan: Plan, degree: int, users: dict[str, list[Layer]]) -> str:
    if plan.mesh.degree("channel") > 1:
        ranks = degree * plan.mesh.degree("channel")
        tied = {array.name for planned in plan.layers for array in planned.layer.tied}
        nearest = f"data={ranks}"
        for fewer in range(ranks, 1, -1):
            if splittable(plan, lambda layer, d=fewer: convolution(layer, d, tied)):  # type: ignore[misc]
                nearest = f"channel={fewer}"
                break
        return (
            f"{plan.mesh} splits convolutions over channel and all else over tensor, and this "
            f"model has nothing else that can be split; use {nearest}."
        )
    sizes = [
        max(size for array in planned.layer.parameters for size in array.shape[:2])
        for planned in plan.layers
        if planned.layer.role in ("linear", "conv", "embedding") and planned.layer.parameters
    ]
    if not sizes:
        return (
            f"{plan.mesh} splits linear layers, convolutions, embeddings and attention heads, and "
            f"this model has none that can be split; use data={degree}."
        )
    if read := exposed_note(plan):
        return f"{plan.mesh} finds no layer that can be split: {read}; use data={degree}."
    nearest = f"data={degree}"
    for fewer in range(min(max(sizes), degree - 1), 1, -1):
        if splittable(plan, lambda layer, d=fewer: _layer(layer, users, d)):  # type: ignore[misc]
            nearest = f"tensor={fewer}"
            break
    return (
        f"{plan.mesh}: no layer can be split in {degree}. The widest has {max(sizes)} features; "
        f"the nearest is {nearest}."
    )


STRATEGY = Strategy(
    axis=AXIS,
    family="model parallel",
    title="Tensor (each rank a part of every weight)",
    summary=(
        "Linear layers are split in columns or rows, attention by heads, convolutions by filters; "
        "two layers share one sum where nothing between them needs whole arrays."
    ),
    cut=cut,
    options={sequence.OPTION: ("whole", "split")},
    remedies={
        "compute": (
            "fewer ranks, or data: narrow parts of layers use a core less well, and what is "
            "between them is computed by all"
        ),
        "comm": "a smaller batch, or data: the outputs of layers travel, and grow with the batch",
        "wait": "degrees that divide heads and features, or fewer other programs beside it",
        "optimizer": "fewer layers that stay whole (print the plan)",
        "load": "data: here every rank reads the whole batch",
    },
)
