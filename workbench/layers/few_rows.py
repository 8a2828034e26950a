"""Products of few rows with a large weight, by oneDNN instead of MKL.

Small micro-batches use a core badly: with 32 rows and weights of 1024 x 512, MKL, which torch asks
for products in float32, gets 60 GFLOP/s out of a core (AMD EPYC) that does 90 with 256 rows; oneDNN
gets 70, and 77 if the weight takes the place of the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.plan.memory import LARGE_NUMEL

MOST_ROWS = 64
TURNED_ROWS = 32
"""From here on it is faster to multiply the weight by the rows."""
_PLAIN = {Tensor, nn.Parameter}  # of a subclass, an operator that is not public may know nothing


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what ``F.linear`` does; not to be differentiated."""
    rows = _rows(x)
    if not _suits(x, weight, rows) or x.shape[-1] != weight.shape[1]:
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    if rows < TURNED_ROWS and (bias is None or _is_row(bias, len(weight))):
        result = _product(flat, weight, bias)
    else:
        result = x.new_empty(rows, len(weight))
        turned = _product(weight, flat, None).t()
        if bias is None:
            result.copy_(turned)
        else:
            torch.add(turned, bias, out=result)
    return result.view(*x.shape[:-1], len(weight))


def times(grad: Tensor, weight: Tensor) -> Tensor:
    """Return ``grad @ weight``, by oneDNN if it is not to be differentiated."""
    rows = _rows(grad)
    if torch.is_grad_enabled() or not _suits(grad, weight, rows):
        return grad @ weight
    result = _product(grad.reshape(rows, -1), weight.t(), None)
    return result.view(*grad.shape[:-1], weight.shape[1])


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _suits(x: Tensor, weight: Tensor, rows: int) -> bool:
    return (
        1 < rows <= MOST_ROWS
        and weight.numel() >= LARGE_NUMEL
        and x.dtype == weight.dtype == torch.float32
        and {type(x), type(weight)} <= _PLAIN
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def _is_row(bias: Tensor, size: int) -> bool:
    """Return whether a bias is as oneDNN takes it: it does not look at strides, nor broadcast."""
    return bias.shape == (size,) and bias.is_contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # What torch's own compiler calls for a linear layer; nothing public leads to it.
    call: Any = torch.ops.mkldnn._linear_pointwise
    result: Tensor = call(x, weight, bias, "none", [], "")
    return result
