"""A model that computes in bfloat16, with float32 copies of its parameters to update.

Mixed precision with master weights (Micikevicius et al., "Mixed precision training", ICLR 2018) in
bfloat16, whose exponent is that of float32, so that no loss has to be scaled (Kalamkar et al.,
2019). The whole model is in bfloat16, as under FSDP's ``MixedPrecision``: which array has which
type is then the same on every device, so that a plan can count its bytes; ``torch.autocast``
chooses otherwise on a GPU than on a CPU. BatchNorm and InstanceNorm keep their numbers in float32,
as their running statistics would not move in bfloat16.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from workbench.plan import Plan

LOW = torch.bfloat16


def lower(model: nn.Module) -> nn.Module:
    """Return ``model``, in place, with its floating-point parameters and buffers in bfloat16."""
    with torch.no_grad():
        for module, attribute, held in _lowered(model):
            held.data = held.data.to(LOW)
            assert getattr(module, attribute).dtype == LOW
    _lower_buffers(model)
    return model


class Masters:
    """The parameters of a rank as they are updated, and as the model computes with them.

    Attributes
    ----------
    parameters:
        By name, what the optimizer updates, a run keeps and ranks agree on.
    computing:
        By name, what the model has and gradients come of: the same, or bfloat16 copies.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.computing = dict(self.parameters)
        self.copies: list[tuple[nn.Parameter, nn.Parameter]] = []
        if not plan.low:
            return
        # Shares are gathered in bfloat16, see workbench.layers.sharding, and stay as they are.
        shares = {id(self.parameters[n]) for n in plan.summed_in_layers if n in self.parameters}
        made: dict[int, nn.Parameter] = {}
        for module, attribute, held in _lowered(model, shares):
            if id(held) not in made:
                low = nn.Parameter(held.detach().to(LOW), requires_grad=held.requires_grad)
                made[id(held)] = low
                self.copies.append((held, low))
            setattr(module, attribute, made[id(held)])
        self.computing = {name: made.get(id(p), p) for name, p in self.parameters.items()}
        _lower_buffers(model)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy what has been updated to where the model computes with it."""
        for master, low in self.copies:
            low.copy_(master)


def _lowered(
    model: nn.Module, besides: Collection[int] = ()
) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return who holds a parameter that is computed with in bfloat16, under which name."""
    return [
        (module, attribute, held)
        for module in model.modules()
        if not isinstance(module, _NormBase)
        for attribute, held in module._parameters.items()
        if held is not None
        and held.is_floating_point()
        and not held.is_meta
        and id(held) not in besides
    ]


def _lower_buffers(model: nn.Module) -> None:
    made: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, _NormBase):
            continue
        for name, held in module._buffers.items():
            if held is not None and held.is_floating_point():
                module._buffers[name] = made.setdefault(id(held), held.to(LOW))


def exactly(x: Tensor) -> Tensor:
    """Return ``x`` in a type that sums are taken in: float32 for the half ones."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
