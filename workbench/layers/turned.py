"""Linear layers whose weight lies the other way round, as ``Conv1D`` of the transformers package.

They come from packages that the workbench does not import. A class is known by its name, and by
what it does: a small layer of it is made and has to compute ``x @ weight + bias``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.generators import set_aside
from workbench.layers.carrier import Carrier, Declared, Forward, Seat
from workbench.layers.channels import is_split
from workbench.layers.linear import build_linear, declare_linear
from workbench.traced import Traced

_READS, _MAKES = 2, 3
_tried: dict[type, bool] = {}


def _is_turned_linear(kind: type[nn.Module]) -> bool:
    """Return whether modules of class ``kind`` compute ``x @ weight + bias``, found by trying."""
    if kind.__name__ != "Conv1D":
        return False
    if kind not in _tried:
        _tried[kind] = _computes_so(kind)
    return _tried[kind]


def _computes_so(make: Any) -> bool:
    try:
        with set_aside(), torch.device("cpu"):
            layer = make(_MAKES, _READS).double()
        weight = torch.arange(1.0, 7.0, dtype=torch.float64).view(_READS, _MAKES)
        bias = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
        x = torch.tensor([[[1.0, -2.0]], [[0.25, 3.0]]], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            return torch.equal(layer(x), x @ weight + bias)
    except Exception:  # another class of this name
        return False


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    return replace(declare_linear(module, arguments, output_shape), turned=True)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    if not any(is_split(planned) for planned in seat.calls):
        return build_linear(module, seat, turned=True)

    def forward(x: Tensor) -> Tensor:
        # The module's own code counts its outputs by a number that it was made with.
        weight, bias = module.weight, module.bias
        return F.linear(x, weight.t(), bias)  # type: ignore[operator, arg-type]

    return forward


CARRIERS = (Carrier((), _declare, _build, like=_is_turned_linear),)
