"""Gradients of weights, worked out apart from those of inputs: straight into their sum, or later.

Autograd makes a new array of every gradient of a weight, which is then read again to be added to
that of the micro-batch before. A product can add itself up where the sum lies, in one pass
(Megatron's ``gradient_accumulation_fusion``): that of 32 rows takes half the time.

It can also wait. The halves of a backward pass (Qi et al., "Zero bubble pipeline parallelism",
2024, section 2): the stage before waits for the gradient of what it has sent, and nobody waits for
that of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.layers import few_rows
from workbench.plan.memory import LARGE_NUMEL


class Product(Protocol):
    """A gradient of a weight that has not been worked out yet."""

    def value(self) -> Tensor:
        """Return it."""

    def write(self, sum_: Tensor, add: bool) -> None:
        """Add it to ``sum_``, or replace ``sum_`` by it."""


Add = Callable[[nn.Parameter, Product], bool]
"""Takes a gradient of a parameter; returns whether it has."""


class WeightGradients:
    """Gives layers a ``forward`` whose backward leaves the gradients of weights to this object.

    Attributes
    ----------
    add:
        Where they go, such as :meth:`workbench.layers.gradients.GradientBuckets.add`.
    """

    Queue = list[tuple[nn.Parameter, Product]]

    def __init__(self) -> None:
        self.add: Add = lambda parameter, product: False
        self._collecting = False
        self._queue: WeightGradients.Queue | None = None

    def watch(self, model: nn.Module, halves: bool) -> None:
        """Give the linear layers of ``model`` another ``forward``; with ``halves`` convolutions.

        Subclasses are left alone, for they may compute something else.
        """
        for module in model.modules():
            layer: Any = module
            if type(module) is nn.Linear and (halves or module.weight.numel() >= LARGE_NUMEL):
                layer.forward = self._linear(module)
            elif halves and type(module) in _CONVOLUTIONS:
                layer.forward = self._convolution(layer, module.forward)

    @contextmanager
    def collecting(self, queue: Queue | None = None) -> Iterator[None]:
        """Take the gradients of a backward pass for training, at once or into ``queue``.

        Not those of another one, such as ``torch.autograd.grad`` in a model's own code.
        """
        self._collecting, self._queue = True, queue
        try:
            yield
        finally:
            self._collecting, self._queue = False, None

    def work_off(self, queue: Queue) -> None:
        """Work out what was left: of a linear layer all rows in one product."""
        by_weight: dict[int, WeightGradients.Queue] = {}
        for weight, product in queue:
            by_weight.setdefault(id(weight), []).append((weight, product))
        queue.clear()
        for found in by_weight.values():
            weight, products = found[0][0], [product for _, product in found]
            for product in _joined(products):
                if not self.add(weight, product):
                    torch.autograd.backward([weight], [product.value()])

    def taken(self, weight: Tensor, product: Product) -> bool:
        """Take a product; False if it is autograd's to work out."""
        if not self._collecting or torch.is_grad_enabled() or weight._backward_hooks:
            return False  # asked for by the model, to be differentiated again, or to be seen
        if not (isinstance(weight, nn.Parameter) and weight.is_leaf):
            return False  # one that is gathered from shares goes back with its bias, all at once
        if self._queue is not None:
            self._queue.append((weight, product))
            return True
        return self.add(weight, product)

    def _linear(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:
            if not _plain(input, module.weight):
                return F.linear(input, module.weight, module.bias)
            result: Tensor = _Linear.apply(input, module.weight, module.bias, self)
            return result

        return forward

    def _convolution(self, module: Any, own: Callable[[Tensor], Tensor]) -> Any:
        ways: dict[int, _Way | None] = {}

        def forward(input: Tensor) -> Tensor:
            # A rank may have been given some of the groups only, later than here.
            if module.groups not in ways:
                ways[module.groups] = _Way.of(module)
            way = ways[module.groups]
            batched = input.dim() == module.weight.dim()
            if way is None or not batched or not _plain(input, module.weight):
                return own(input)
            if way.pad is not None:
                input = F.pad(input, way.pad, way.mode)
            result: Tensor = _Convolution.apply(input, module.weight, module.bias, way, self)
            return result

        return forward


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Return whether nothing but eager autograd looks at a call."""
    if not (torch.is_grad_enabled() and weight.requires_grad and x.dtype == weight.dtype):
        return False
    if not x.is_floating_point():
        return False
    return not (
        torch.is_autocast_enabled(x.device.type) or torch._C._are_functorch_transforms_active()
    )


def _write(value: Tensor, sum_: Tensor, add: bool) -> None:
    if add:
        sum_.add_(value)
    else:
        sum_.copy_(value)


@dataclass(frozen=True)
class _OfLinear:
    x: Tensor
    grad: Tensor

    def _rows(self) -> tuple[Tensor, Tensor]:
        x, grad = self.x, self.grad
        return grad.reshape(-1, grad.shape[-1]).t(), x.reshape(-1, x.shape[-1])

    def value(self) -> Tensor:
        return torch.mm(*self._rows())

    def write(self, sum_: Tensor, add: bool) -> None:
        if sum_.dtype != self.x.dtype:
            _write(self.value(), sum_, add)
        elif add:
            sum_.addmm_(*self._rows())
        else:
            torch.mm(*self._rows(), out=sum_)


def _joined(products: list[Product]) -> list[Product]:
    """Return products of a linear layer as one of all their rows, others as they are."""
    linear = [each for each in products if isinstance(each, _OfLinear)]
    if len(linear) < 2:
        return products
    x = torch.cat([each.x.reshape(-1, each.x.shape[-1]) for each in linear])
    grad = torch.cat([each.grad.reshape(-1, each.grad.shape[-1]) for each in linear])
    return [_OfLinear(x, grad), *(each for each in products if not isinstance(each, _OfLinear))]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradients: WeightGradients
    ) -> Tensor:
        # Saved without a node of its own: what autograd gives back may be another object.
        ctx.gradients, ctx.weight = gradients, weight if weight.is_leaf else None
        ctx.save_for_backward(x, weight)
        return few_rows.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_x = few_rows.times(grad, weight) if ctx.needs_input_grad[0] else None
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            product = _OfLinear(x.detach(), grad.detach())
            if ctx.weight is None or not ctx.gradients.taken(ctx.weight, product):
                of_weight = _OfLinear(x, grad).value()
        return of_x, of_weight, of_bias, None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Way:
    """How a convolution is asked for; ``pad`` is what is laid around the input before it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pad: list[int] | None
    mode: str

    @classmethod
    def of(cls, module: Any) -> _Way:
        """Return how ``module`` asks."""
        around, mode = module._reversed_padding_repeated_twice, module.padding_mode
        none = (0,) * len(module.stride)
        if module.padding == "valid":
            padding, pad = none, None
        elif mode != "zeros" or module.padding == "same":
            padding, pad = none, list(around)
        else:
            padding, pad = module.padding, None
        mode = "constant" if mode == "zeros" else mode
        return cls(module.stride, padding, module.dilation, module.groups, pad, mode)

    def gradients(
        self, x: Tensor, weight: Tensor, grad: Tensor, wanted: list[bool]
    ) -> list[Tensor | None]:
        """Return those of the input, the weight and the bias that are wanted."""
        found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            *(grad, x, weight, [weight.shape[0]], self.stride, self.padding, self.dilation),
            *(False, [0] * len(self.stride), self.groups, wanted),
        )
        return [each if asked else None for each, asked in zip(found, wanted, strict=True)]


@dataclass(frozen=True)
class _OfConvolution:
    x: Tensor
    weight: Tensor
    grad: Tensor
    way: _Way

    def value(self) -> Tensor:
        found = self.way.gradients(self.x, self.weight, self.grad, [False, True, False])[1]
        assert found is not None
        return found

    def write(self, sum_: Tensor, add: bool) -> None:
        _write(self.value(), sum_, add)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        way: _Way,
        gradients: WeightGradients,
    ) -> Tensor:
        ctx.way, ctx.gradients = way, gradients
        ctx.weight = weight if weight.is_leaf else None
        ctx.save_for_backward(x, weight)
        return torch.convolution(
            *(x, weight, bias, way.stride, way.padding, way.dilation),
            *(False, [0] * len(way.stride), way.groups),
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        late = False
        if wanted[1] and ctx.weight is not None:
            product = _OfConvolution(x.detach(), weight.detach(), grad.detach(), ctx.way)
            late = ctx.gradients.taken(ctx.weight, product)
            wanted[1] = not late
        if not any(wanted):
            return None, None, None, None, None
        return (*ctx.way.gradients(x, weight, grad, wanted), None, None)
