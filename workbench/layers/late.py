"""Gradients of weights that are worked out later than those of inputs.

The halves of a backward pass (Qi et al., "Zero bubble pipeline parallelism", 2024, section 2): the
stage before waits for the gradient of what it has sent, and nobody waits for that of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LateWeights:
    """Where linear layers leave the products that are the gradients of their weights."""

    Queue = list[tuple[Tensor, Tensor, Tensor]]
    """Weights, what they were multiplied with, and the gradients of the products."""

    def __init__(self) -> None:
        self._queue: LateWeights.Queue | None = None

    def watch(self, model: nn.Module) -> None:
        """Give the linear layers of ``model`` a ``forward`` whose halves can be taken apart."""
        for module in model.modules():
            if type(module) is nn.Linear:
                layer: Any = module
                layer.forward = self._forward(module)

    def _forward(self, module: nn.Linear) -> Any:
        def forward(input: Tensor) -> Tensor:
            result: Tensor = _Linear.apply(input, module.weight, module.bias, self)
            return result

        return forward

    @contextmanager
    def into(self, queue: Queue | None) -> Iterator[None]:
        """Leave gradients of weights in ``queue``; with None they are worked out at once."""
        self._queue = queue
        try:
            yield
        finally:
            self._queue = None

    def work_off(self, queue: Queue) -> None:
        """Work out what was left."""
        for weight, x, grad in queue:
            torch.autograd.backward([weight], [_of_weight(x, grad)])
        queue.clear()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, late: LateWeights
    ) -> Tensor:
        # A weight that is gathered from shares goes back with its bias, all at once.
        ctx.late, ctx.weight = late, weight if weight.is_leaf else None
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_x = grad @ weight if ctx.needs_input_grad[0] else None
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None, of_bias, None
        if ctx.late._queue is not None and ctx.weight is not None:
            ctx.late._queue.append((ctx.weight, x.detach(), grad.detach()))
            return of_x, None, of_bias, None
        return of_x, _of_weight(x, grad), of_bias, None


def _of_weight(x: Tensor, grad: Tensor) -> Tensor:
    return grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
