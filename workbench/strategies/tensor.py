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
from workbench.strategies.nearest import fewer, fewer_ranks, replicas
from workbench.strategies.splittable import Splittable, splittable
from workbench.strategies.splitting import split
from workbench.strategies.strategy import Strategy
from workbench.strategies.wording import exposed_note, few_heads_notes
from workbench.traced import Flat, Label, Layer

AXIS = "tensor"


def cut(plan: Plan) -> Plan:
    """Split every layer with weights that can be split."""
    degree = plan.mesh.degree(AXIS)
    users: dict[str, list[Layer]] = {}
    for planned in plan.layers:
        for array in (*planned.layer.parameters, *planned.layer.tied):
            users.setdefault(array.name, []).append(planned.layer)
    found = _found(plan, degree, users)
    if not found:
        raise PlanError(_nothing_to_split(plan, users))
    return split(plan, AXIS, found).adding(notes=few_heads_notes(plan, degree))


def _found(plan: Plan, degree: int, users: dict[str, list[Layer]]) -> list[Splittable]:
    """Return what can be split in ``degree``; convolutions are those of ``channel`` if it is on."""
    left = plan.mesh.degree("channel") > 1

    def find(layer: Layer) -> Splittable | None:
        return None if left and layer.role == "conv" else _layer(layer, users, degree)

    return splittable(plan, degree, find)


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


def _nothing_to_split(plan: Plan, users: dict[str, list[Layer]]) -> str:
    degree = plan.mesh.degree(AXIS)
    if plan.mesh.degree("channel") > 1:
        return _nothing_beside_channel(plan)
    layers = [planned.layer for planned in plan.layers if planned.layer.arguments]
    heads = [layer for layer in layers if layer.head_count]
    made = [
        layer.results[0].shape[layer.feature_dim(layer.results[0])]
        for layer in layers
        if layer.role in ("linear", "conv", "embedding") and layer.results
    ]
    instead = replicas(plan, AXIS)
    if not made and not heads:
        return (
            f"{plan.mesh} splits linear layers, convolutions, embeddings and attention heads, and "
            f"this model has none that can be split; use {instead}."
        )
    tied = [a.shape[0] for p in plan.layers for a in p.layer.tied if a.shape]  # by vocabulary
    most = max((*made, *tied, *(layer.head_count for layer in heads)))
    nearest = fewer_ranks(plan, AXIS, most, lambda fewer: bool(_found(plan, fewer, users)))
    if nearest == instead and (read := exposed_note(plan)):
        return f"{plan.mesh} finds no layer that can be split: {read}; use {instead}."
    if not made:
        widest = max(heads, key=lambda layer: layer.head_count)
        return (
            f"{plan.mesh} splits attention by heads, and layer {widest.name!r} has "
            f"{widest.head_count}; use {nearest}."
        )
    return (
        f"{plan.mesh}: no layer can be split in {degree}. The widest makes {max(made)} features; "
        f"the nearest is {nearest}."
    )


def _nothing_beside_channel(plan: Plan) -> str:
    both = (AXIS, "channel")
    ranks = plan.mesh.degree(AXIS) * plan.mesh.degree("channel")
    tied = {array.name for planned in plan.layers for array in planned.layer.tied}
    found = fewer(
        ranks + 1,
        ranks,
        lambda degree: bool(splittable(plan, degree, lambda c: convolution(c, degree, tied))),
    )
    nearest = str(plan.mesh.with_degree(AXIS, 1).with_degree("channel", found))
    return (
        f"{plan.mesh} splits convolutions over channel and all else over tensor, and this "
        f"model has nothing else that can be split; use "
        f"{nearest if found > 1 else replicas(plan, *both)}."
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
