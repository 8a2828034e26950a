"""Adaptive pooling on a rank's share of the rows.

An output of size 1 along a cut dim is one sum, or maximum, over all ranks, and whole on every rank
from there on. Larger outputs are windows of several sizes: output row ``o`` sees the input rows
from ``floor(o size / outputs)`` to ``ceil((o + 1) size / outputs)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd

from workbench.comm.comm import Comm
from workbench.layers.carrier import Carrier, Declared, Forward, Seat, empty_like_output
from workbench.layers.fetch import Fetch, fetch_for
from workbench.layers.gather import all_reduce_sum
from workbench.layers.windowed import declared, output_sizes
from workbench.plan import LayerPlan
from workbench.traced import Refusal, Sums, Traced
from workbench.windows import Window

_DIMS = {
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 1),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 2),
    **dict.fromkeys((nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 3),
}
_AVERAGE: tuple[Callable[..., Tensor], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)
_MAX: tuple[Callable[..., Tensor], ...] = (
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)


def _dims(module: nn.Module) -> int:
    return next(dims for kind, dims in _DIMS.items() if isinstance(module, kind))


def _table(size: int, outputs: int) -> Window:
    if size and outputs and size % outputs == 0:
        step = size // outputs
        return Window(size, outputs, stride=step, span=step)
    table = tuple((o * size // outputs, -(-(o + 1) * size // outputs)) for o in range(outputs))
    return Window(size, outputs, table=table)


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    source, dims = arguments[0], _dims(module)
    first = len(source.shape) - dims
    windows = [
        _table(a, b) for a, b in zip(source.shape[first:], output_shape[first:], strict=True)
    ]
    refusals: tuple[Refusal, ...] = ()
    everywhere = tuple(x for x in source.labels[first:] if isinstance(x, str) and x)
    if getattr(module, "return_indices", False):
        reason = f"{type(module).__name__}(return_indices=True) gives positions in the whole array"
        refusals = (Refusal(everywhere, f"{reason}; use return_indices=False"),)
    said = declared(module, source, output_shape, windows, refusals)
    single = [d for d in range(first, len(source.shape)) if output_shape[d] == 1]
    lost = tuple(x for d in single if isinstance(x := source.labels[d], str) and x)
    if not lost:
        return said
    labels = tuple("" if d in single else label for d, label in enumerate(said.labels))
    kept = tuple((d, w) for d, w in said.windows if d not in single)
    # What is left of the output, of which a rank may own a part.
    numel = 1
    for size in output_shape[1:]:
        numel *= size
    biggest = isinstance(module, _AdaptiveMaxPoolNd)
    first_sum = Sums(
        "largest of every rank" if biggest else "sum",
        "all_gather" if biggest else "all_reduce",
        lost,
        numel,
        "forward",
        per_sample=True,
    )
    back = Sums("gradient", "all_reduce", lost, numel, "backward", per_sample=True)
    sums = (first_sum, back) if source.gradient else (first_sum,)
    return Declared(labels, kept, sums, said.refusals)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    plain, dims = module.forward, _dims(module)
    if "spatial" not in seat.cut_axes:
        return None
    fetches = {id(planned): _fetch(seat, planned) for planned in seat.calls}

    def forward(input: Tensor) -> Tensor:
        planned = seat.call(input)
        first = input.dim() - dims
        cut = [c.dim for c in planned.input if c.axis == "spatial"]
        if not cut:
            return plain(input)
        sizes = planned.layer.output_shape[first:]
        if all(planned.layer.output_shape[dim] == 1 for dim in cut):
            whole = planned.layer.input_shape
            if isinstance(module, _AdaptiveMaxPoolNd):
                return _largest(input, sizes, dims, seat)
            return _mean(input, sizes, dims, cut, whole, seat)
        fetch = fetches[id(planned)]
        assert fetch is not None
        x = fetch(input)
        local = output_sizes(seat, planned, input)
        if 0 in local:
            return empty_like_output(x, local)
        return _by_rows(x, module, planned, seat, fetch, first)

    return forward


def _fetch(seat: Seat, planned: LayerPlan) -> Fetch | None:
    return fetch_for(seat, planned) if planned.layer.windows else None


def _mean(
    x: Tensor, sizes: Sequence[int], dims: int, cut: list[int], whole: Sequence[int], seat: Seat
) -> Tensor:
    """Return the mean over all ranks' rows, whole on each."""
    first = x.dim() - dims
    local = x.sum(cut, keepdim=True)
    rest = [1 if first + d in cut else size for d, size in enumerate(sizes)]
    local = _AVERAGE[dims - 1](local, rest)
    total = all_reduce_sum(
        local, seat.comm("spatial"), f"{seat.name}: sum", f"{seat.name}: gradient"
    )
    count = 1
    for dim in cut:
        count *= whole[dim]
    return total / count


def _largest(x: Tensor, sizes: Sequence[int], dims: int, seat: Seat) -> Tensor:
    """Return the maximum over all ranks' rows, whole on each."""
    shape = (*x.shape[: x.dim() - dims], *sizes)
    local = x.sum() * 0 - torch.inf * torch.ones(shape, dtype=x.dtype, device=x.device)
    if x.numel():
        local = _MAX[dims - 1](x, list(sizes))
    result: Tensor = _Largest.apply(local, seat.comm("spatial"), seat.name)
    return result


class _Largest(torch.autograd.Function):
    """The maximum over ranks; its gradient goes to the first rank that has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm, name: str) -> Tensor:
        every = torch.stack(comm.all_gather(x, name=f"{name}: largest of every rank"))
        ctx.comm, ctx.name = comm, name
        largest = every.amax(0)
        first = (every == largest).int().argmax(0)
        ctx.save_for_backward(first == comm.rank)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (mine,) = ctx.saved_tensors
        total = ctx.comm.all_reduce(grads[0].clone(), name=f"{ctx.name}: gradient")
        return total * mine, None, None


def _by_rows(
    x: Tensor,
    module: nn.Module,
    planned: LayerPlan,
    seat: Seat,
    fetch: Fetch,
    first: int,
) -> Tensor:
    """Pool the windows of the cut dims one by one: their sizes differ, and none is wasted."""
    layer = planned.layer
    pools = _MAX if isinstance(module, _AdaptiveMaxPoolNd) else _AVERAGE
    sizes = list(layer.output_shape[first:])
    ranges = seat.ranges(layer.output_shape, planned.output)

    def pooled(part: Tensor, dims: list[int]) -> Tensor:
        if not dims:
            return pools[len(sizes) - 1](part, sizes)
        dim, window = dims[0], layer.window(dims[0])
        assert window is not None
        start, stop = ranges[dim]
        base = fetch.rows[fetch.dims.index(dim)].start
        sizes[dim - first] = 1
        rows = []
        for output in range(start, stop):
            low, high = window.needs(output, output + 1)
            rows.append(pooled(part.narrow(dim, low - base, high - low), dims[1:]))
        return torch.cat(rows, dim)

    return pooled(x, list(fetch.dims))


CARRIERS: tuple[Carrier, ...] = (Carrier(tuple(_DIMS), _declare, _build),)
