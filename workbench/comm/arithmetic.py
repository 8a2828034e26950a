"""The one addition of all backends: over ranks, in rank order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.comm.arguments import ReduceOp

_OPERATORS: dict[ReduceOp, Callable[..., Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}

_HALF = (torch.bfloat16, torch.float16)


def reduce_in_rank_order(by_rank: Sequence[Tensor], op: ReduceOp, out: Tensor) -> None:
    """Write the reduction of two or more equal-sized tensors to ``out``.

    The order is fixed, so that the bits do not depend on who computes. ``out`` may be one of the
    first two tensors and no later one. Sums of half precision are taken in float32 and rounded
    once.
    """
    operator = _OPERATORS[op]
    if op == "sum" and out.dtype in _HALF and len(by_rank) > 2:
        total = by_rank[0].float()
        for tensor in by_rank[1:]:
            total += tensor
        out.copy_(total)
        return
    operator(by_rank[0], by_rank[1], out=out)
    for tensor in by_rank[2:]:
        operator(out, tensor, out=out)
