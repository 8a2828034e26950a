"""What attention keeps for its backward pass: torch's kernels, which do not keep its weights.

On the meta device torch takes attention apart, and each part keeps what it needs. With numbers it
takes a kernel that keeps queries, keys, values, the result, and one number for each query
(FlashAttention, Dao et al., NeurIPS 2022), and works out the weights again.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workbench.tracking.calls import Calls
from workbench.tracking.operation import set_tags, tags_of
from workbench.tracking.watch import Watch

_ATTEND = F.scaled_dot_product_attention
_MULTI_HEAD = F.multi_head_attention_forward


class Kernels(TorchFunctionMode):
    """Has ``calls`` note what the kernel of an attention would keep."""

    def __init__(self, watch: Watch, calls: Calls) -> None:
        super().__init__()
        self.watch, self.calls = watch, calls
        # The body of torch's function, in which nobody else is asked how to attend.
        known = {
            **vars(F),
            "has_torch_function": lambda _: False,
            "scaled_dot_product_attention": self._attend,
        }
        body = FunctionType(
            _MULTI_HEAD.__code__, known, argdefs=_MULTI_HEAD.__defaults__, closure=None
        )
        body.__kwdefaults__ = _MULTI_HEAD.__kwdefaults__
        self._multi_head = body

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is _ATTEND:
            func = self._attend
        elif func is _MULTI_HEAD:
            func = self._multi_head
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> Tensor:
        if not _has_kernel(query, key, value, attn_mask, dropout_p):
            return _ATTEND(query, key, value, attn_mask, dropout_p, is_causal, **others)
        with self.calls.saved.silent():
            mixed = _ATTEND(query, key, value, attn_mask, dropout_p, is_causal, **others)
        tags = tags_of(mixed)
        self.watch.blind += 1  # this is no code of the model
        try:
            # The kernel's result lies as queries do, so that heads are often put together
            # without a copy.
            strides = torch.empty_like(query.detach()).stride()
            order = sorted(range(4), key=lambda dim: -strides[dim])
            back = [order.index(dim) for dim in range(4)]
            mixed = mixed.permute(order).contiguous().permute(back)
            sums = mixed.detach().new_empty(mixed.shape[:-1])
        finally:
            self.watch.blind -= 1
        set_tags(mixed, tags)
        set_tags(sums, tags[:-1])
        if mixed.requires_grad:
            for x in (query, key, value, mixed, sums, *([] if attn_mask is None else [attn_mask])):
                self.calls.save(x)
        return mixed


def _has_kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float
) -> bool:
    """Return whether torch has a kernel for these; else it takes attention apart here too."""
    return (
        query.dim() == key.dim() == value.dim() == 4
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and dropout_p == 0.0
        and not (mask is not None and mask.requires_grad)
        and torch.is_floating_point(query)
    )
