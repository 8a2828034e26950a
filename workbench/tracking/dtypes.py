"""Products of whole and of real numbers, which torch refuses, but not on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PRODUCTS = {
    functional.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
    torch.matmul,
    torch.mm,
    Tensor.matmul,
    Tensor.mm,
    Tensor.__matmul__,
}


class Dtypes(TorchFunctionMode):
    """Refuses such a product as torch does where it computes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at the two factors, then go on."""
        if func in _PRODUCTS:
            found = [x.dtype for x in args[:2] if isinstance(x, Tensor)]
            if len({dtype.is_floating_point for dtype in found}) > 1:
                said = " and ".join(str(dtype).removeprefix("torch.") for dtype in found)
                raise TypeError(f"it multiplies {said}, which torch does not")
        return func(*args, **(kwargs or {}))
