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


def reduce_in_rank_order(by_rank: Sequence[Tensor], op: ReduceOp, out: Tensor) -> None:
    """Write the reduction of two or more equal-sized tensors to ``out``.

    The order is fixed, so that the bits do not depend on who computes. ``out`` may be one of the
    first two tensors and no later one.
    """
    operator = _OPERATORS[op]
    operator(by_rank[0], by_rank[1], out=out)
    for tensor in by_rank[2:]:
        operator(out, tensor, out=out)
