"""Give the layers that a plan does not leave whole their parallel way of computing."""

from __future__ import annotations

from torch import nn

from workbench.layers import channels
from workbench.layers.carrier import Seat
from workbench.layers.carriers import carrier_of
from workbench.layers.gather import build_opaque
from workbench.layers.groups import Groups
from workbench.layers.positions import gathered, meet
from workbench.layers.precision import Masters
from workbench.layers.sharding import shard
from workbench.layers.share import Share
from workbench.layers.sizes import Counting, look_away, resize
from workbench.plan import LayerPlan, Plan


def parallelize(
    model: nn.Module, plan: Plan, groups: Groups, share: Share, masters: Masters | None = None
) -> nn.Module:
    """Return ``model``, in place, computing this rank's part of ``plan``.

    Modules stay where they are, with their parameters, buffers and hooks; those that have to know
    of the other ranks get another ``forward``. Where the plan computes in bfloat16, ``masters`` get
    the parameters as they are, and the model copies.
    """
    masters = Masters() if masters is None else masters
    channels.narrow(model, plan, groups.rank)
    channels.adapt(model, plan, groups.rank)
    calls: dict[str, list[LayerPlan]] = {}
    for planned in plan.layers:
        calls.setdefault(planned.layer.name, []).append(planned)
    root = type(model).__name__
    for number, (name, module) in enumerate(list(model.named_modules())):
        mine = tuple(calls.get(name or root, ()))
        seat = Seat(name or root, number, mine, plan, groups, share)
        if any(planned.choice == "gather" and planned.layer.role == "opaque" for planned in mine):
            module.forward = build_opaque(module, seat)
            continue
        carrier = carrier_of(module)
        forward = carrier.build(module, seat) if carrier else None
        if mine and channels.is_split(mine[0]):
            forward = channels.around(forward or module.forward, module, seat)
        if any(planned.choice == "gather output" for planned in mine):
            forward = gathered(forward or module.forward, seat)
        if forward is not None:
            module.forward = forward
    _spell_out_encoders(model, plan)
    modes: list[Counting] = [*resize(model, plan, groups.rank), *meet(model, plan, groups.rank)]
    if plan.low:
        masters.lower(model)
    shard(model, plan, groups, share, masters)
    look_away(model, modes)
    return model


def _spell_out_encoders(model: nn.Module, plan: Plan) -> None:
    """Have encoder layers with cut parameters call their attention.

    Without gradients torch computes such a layer at a stroke, from all parameters inside it.
    """
    cut = {name for planned in plan.layers for name, _ in planned.parameters}
    for name, module in model.named_modules():
        inside = f"{name}.self_attn.".lstrip(".")
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            parameter.startswith(inside) for parameter in cut
        ):
            module.activation_relu_or_gelu = 0  # so that torch finds that it cannot
