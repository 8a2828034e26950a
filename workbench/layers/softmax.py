"""Softmax along a dim that may be cut over ranks."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from workbench.layers.carrier import Carrier, Declared, Forward, Seat, passed
from workbench.layers.gather import Together
from workbench.layers.precision import exactly
from workbench.traced import Sums, Traced


def dim_of(module: nn.Module, dims: int) -> int:
    """Return the dim of an array with so many dims along which ``module`` normalises."""
    if isinstance(module, nn.Softmax2d):
        return dims - 3
    dim = module.dim
    if dim is None:  # torch's old default
        return 0 if dims in (0, 1, 3) else 1
    assert isinstance(dim, int)
    return dim % max(1, dims)


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x = arguments[0]
    labels = passed(x, output_shape)
    dim = dim_of(module, len(x.shape))
    label = x.labels[dim] if x.shape else ""
    if not isinstance(label, str) or not label:
        return Declared(labels)
    rest = prod(size for place, size in enumerate(x.shape) if place not in (0, dim))
    sums = [Sums("largest", "all_reduce", (label,), rest, "forward", dim > 0)]
    sums += [Sums("sum", "all_reduce", (label,), rest, "forward", dim > 0)]
    if x.gradient:
        sums += [Sums("gradient of sum", "all_reduce", (label,), rest, "backward", dim > 0)]
    return Declared(labels, sums=tuple(sums))


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    """Return a forward that takes the largest entry and the sum over all ranks, or None.

    The largest is subtracted so that no exponential overflows; it takes no part in the gradient.
    """
    if not seat.cut_axes:
        return None
    own: Forward = module.forward
    made: dict[tuple[int, ...], Together] = {}
    sign = -1 if isinstance(module, nn.Softmin) else 1

    def forward(input: Tensor) -> Tensor:
        dim = dim_of(module, input.dim())
        key = tuple(input.shape[1:])
        if key not in made:
            made[key] = Together(seat, seat.call(input), (dim,))
        together = made[key]
        if together.comm.size == 1:
            result: Tensor = own(input)
            return result
        x = exactly(input) * sign if sign < 0 else exactly(input)
        largest = together.largest(_largest(x, dim), f"{seat.name}: largest")
        x = x - largest
        exponentials = x.exp()
        total = together.sum(
            exponentials.sum(dim, keepdim=True),
            f"{seat.name}: sum",
            f"{seat.name}: gradient of sum",
        )
        logarithm = isinstance(module, nn.LogSoftmax)
        return (x - total.log() if logarithm else exponentials / total).to(input.dtype)

    return forward


def _largest(x: Tensor, dim: int) -> Tensor:
    """Return the largest entries along ``dim``, kept as 1; minus infinity where there are none."""
    if x.shape[dim]:
        return x.detach().amax(dim, keepdim=True)
    shape = list(x.shape)
    shape[dim] = 1
    return x.new_full(shape, -torch.inf)


CARRIERS = (Carrier((nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d), _declare, _build),)
