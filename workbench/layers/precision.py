"""A model that computes in bfloat16, with float32 copies of its parameters to update.

Mixed precision with master weights (Micikevicius et al., "Mixed precision training", ICLR 2018) in
bfloat16, whose exponent is that of float32, so that no loss has to be scaled (Kalamkar et al.,
2019). The whole model is in bfloat16, as under FSDP's ``MixedPrecision``: which array has which
type is then the same on every device, so that a plan can count its bytes; ``torch.autocast``
chooses otherwise on a GPU than on a CPU. BatchNorm and InstanceNorm keep their numbers in float32,
as their running statistics would not move in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

LOW = torch.bfloat16


def lower(model: nn.Module) -> nn.Module:
    """Return ``model``, in place, with its floating-point parameters and buffers in bfloat16."""
    for _, _, held in _lowered(model):
        held.data = held.data.to(LOW)
    _lower_buffers(model)
    return model


class Masters:
    """The parameters of a rank as they are updated, and as its model computes with them.

    Filled while a model is made parallel, see :func:`workbench.layers.swap.parallelize`; complete
    when :meth:`settle` has seen the result.

    Attributes
    ----------
    parameters:
        By name, what the optimizer updates, a run keeps and ranks agree on.
    computing:
        By name, what the model has and gradients come of: the same, or bfloat16 copies.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.computing: dict[str, nn.Parameter] = {}
        self._masters: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        self._gradients: dict[int, Tensor] = {}

    def lower(self, model: nn.Module) -> None:
        """Have ``model`` compute with copies of its parameters in bfloat16."""
        made: dict[int, nn.Parameter] = {}
        for module, attribute, held in _lowered(model):
            if id(held) not in made:
                low = nn.Parameter(held.detach().to(LOW), requires_grad=held.requires_grad)
                made[id(held)] = low
                self._masters[id(low)] = low, held
            setattr(module, attribute, made[id(held)])
        _lower_buffers(model)

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return what is updated where ``parameter`` is computed with."""
        return self._masters.get(id(parameter), (parameter, parameter))[1]

    def narrow(self, whole: nn.Parameter, share: nn.Parameter, dim: int, start: int) -> None:
        """Note that ``share`` has taken the place of ``whole``: rows from ``start`` on."""
        if id(whole) not in self._masters:
            return
        part = self.of(whole).detach().narrow(dim, start, share.shape[dim]).clone()
        master = nn.Parameter(part, requires_grad=share.requires_grad)
        self._masters[id(share)] = share, master

    def settle(self, model: nn.Module) -> None:
        """Note which parameters ``model`` has after all, and what is updated for them."""
        self.computing = dict(model.named_parameters())
        self.parameters = {name: self.of(p) for name, p in self.computing.items()}
        mine = {id(p) for p in self.computing.values()}
        self._masters = {key: pair for key, pair in self._masters.items() if key in mine}

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy what has been updated to where the model computes with it."""
        for low, master in self._masters.values():
            low.copy_(master)

    def add_gradient(self, low: nn.Parameter, gradient: Tensor) -> None:
        """Keep a gradient that is a sum in float32, beside the one that autograd rounds."""
        before = self._gradients.get(id(low))
        self._gradients[id(low)] = gradient if before is None else before + gradient

    def take_gradient(self, low: Tensor) -> Tensor | None:
        """Return the gradient that backward has just made, in float32 if it was kept so."""
        kept = self._gradients.pop(id(low), None)
        return low.grad if kept is None else kept


def _lowered(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return who holds a parameter that is computed with in bfloat16, under which name."""
    return [
        (module, attribute, held)
        for module in model.modules()
        if not isinstance(module, _NormBase)
        for attribute, held in module._parameters.items()
        if held is not None and held.is_floating_point()
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
