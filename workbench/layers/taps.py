"""Which input rows make an output row of an interpolation, and with what weights.

The numbers are those of torch's kernels for the whole sizes, worked out in the type that they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.windows import Run, Window

_CUBIC = -0.75  # the parameter of Keys (1981) that torch uses
_BAND = 32  # output rows at a time: few enough that most of the matrix is not zero


@dataclass(frozen=True)
class Sizes:
    """One dim of an interpolation.

    ``scale`` is the factor that the user gave, if torch goes by that and not by the sizes.
    """

    size: int
    outputs: int
    mode: str
    align_corners: bool = False
    scale: float | None = None

    def places(self, dtype: torch.dtype) -> Tensor:
        """Return where each output row lies among the input rows, as a fraction."""
        output = torch.arange(self.outputs, dtype=dtype)
        if self.align_corners:
            step = (self.size - 1) / (self.outputs - 1) if self.outputs > 1 else 0.0
            return torch.tensor(step, dtype=dtype) * output
        step = 1.0 / self.scale if self.scale else self.size / self.outputs
        return torch.tensor(step, dtype=dtype) * (output + 0.5) - 0.5


@dataclass(frozen=True)
class Taps:
    """For each output row the input rows that make it, and their weights.

    Both have shape (taps, output rows).
    """

    rows: Tensor
    weights: Tensor


@lru_cache(maxsize=256)
def taps(sizes: Sizes, dtype: torch.dtype) -> Taps:
    """Return the taps of linear or cubic interpolation in the type in which torch computes."""
    places = sizes.places(dtype)
    if sizes.mode == "bicubic":
        return _cubic(places, sizes.size)
    if sizes.size == sizes.outputs:  # torch then leaves the rows as they are, whatever the scale
        places = torch.arange(sizes.outputs, dtype=dtype)
    places = places.clamp(min=0)
    low = places.to(torch.int64).clamp(max=sizes.size - 1)
    share = (places - low).clamp(0, 1)
    high = (low + 1).clamp(max=sizes.size - 1)
    return Taps(torch.stack((low, high)), torch.stack((1 - share, share)))


def _cubic(places: Tensor, size: int) -> Taps:
    """Return the four taps of cubic convolution; rows outside the array are its nearest ones.

    Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    a, base = _CUBIC, places.floor().clamp(max=size - 1)
    share = (places - base).clamp(0, 1)

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    rows = base.to(torch.int64) + torch.arange(-1, 3).view(4, 1)
    weights = torch.stack((far(share + 1), near(share), near(1 - share), far(2 - share)))
    return Taps(rows.clamp(0, size - 1), weights)


@dataclass(frozen=True)
class Sources:
    """For each output row of a nearest-neighbour resampling, the one input row.

    Attributes
    ----------
    rows:
        The row that is copied.
    gradient:
        The row that gets the gradient. Torch rounds there in another type, so now and then it is
        not the same.
    """

    rows: Tensor
    gradient: Tensor


@lru_cache(maxsize=256)
def sources(
    sizes: Sizes, dims: int, dtype: torch.dtype, device: str, last: bool = False
) -> Sources:
    """Return what torch takes for the nearest rows, by asking it.

    ``dims`` is the number of dims that are resampled; ``last`` says that channels are last in
    memory. Torch has kernels for each case, which do not round alike.
    """
    ones = [1] * (dims - 1)
    asked: dict[str, Any] = {"size": (sizes.outputs, *ones)}
    if sizes.scale:
        asked = {"scale_factor": (sizes.scale, *(1.0 for _ in ones))}
    with torch.inference_mode(False), torch.enable_grad():  # whoever asks may have no gradients
        rows = torch.arange(sizes.size, dtype=dtype, device=device)
        x = rows.view(1, 1, -1, *ones).repeat(1, 8, 1, *ones)
        if last:  # of few channels torch does not care
            kind = torch.channels_last if dims == 2 else torch.channels_last_3d
            x = x.contiguous(memory_format=kind)
        x.requires_grad_()
        y = F.interpolate(x, mode=sizes.mode, **asked)
        (counts,) = torch.autograd.grad(y.sum(), x)
    # The rows of outputs never go down, so how often each is used says which.
    gradient = torch.arange(sizes.size).repeat_interleave(counts[0, 0].flatten().long().cpu())
    return Sources(y.detach()[0, 0].flatten().long().cpu(), gradient)


def same_in_all_layouts(sizes: Sizes, dims: int, dtype: torch.dtype) -> bool:
    """Return whether torch takes the same nearest rows wherever channels lie in memory."""
    if dims == 1:
        return True
    one, other = (sources(sizes, dims, dtype, "cpu", last) for last in (False, True))
    return torch.equal(one.rows, other.rows) and torch.equal(one.gradient, other.gradient)


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which torch works out places for arrays of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@lru_cache(maxsize=256)
def window_of(sizes: Sizes) -> Window:
    """Return the rows that the outputs need, whatever the type in which torch computes."""
    every = []
    for dtype in (torch.float32, torch.float64):
        if sizes.mode.startswith("nearest"):
            for dims in (1, 2, 3):
                found = sources(sizes, dims, dtype, "cpu")
                every += [found.rows, found.gradient]
        else:
            every += list(taps(sizes, dtype).rows)
    rows = torch.stack(every)
    first, last_row = rows.amin(0).tolist(), rows.amax(0).tolist()
    table: tuple[Run, ...] = tuple((a, b + 1) for a, b in zip(first, last_row, strict=True))
    return Window(sizes.size, sizes.outputs, table=table)


class Bands:
    """Weighted sums of taps as products with small matrices, a few output rows at a time.

    Parameters
    ----------
    rows, weights:
        As in :class:`Taps`; row 0 is the first of the array that is given.
    """

    def __init__(self, rows: Tensor, weights: Tensor) -> None:
        self.outputs = rows.shape[1]
        self.pieces: list[tuple[Run, Run, Tensor]] = []
        for start in range(0, self.outputs, _BAND):
            stop = min(start + _BAND, self.outputs)
            mine = rows[:, start:stop]
            low, high = int(mine.min()), int(mine.max()) + 1
            matrix = weights.new_zeros(stop - start, high - low)
            matrix.scatter_add_(1, (mine - low).T, weights[:, start:stop].T)
            self.pieces.append(((start, stop), (low, high), matrix))

    def __call__(self, x: Tensor, dim: int) -> Tensor:
        """Return the sums along ``dim``, which is not negative."""
        result: Tensor = _Bands.apply(x, dim, self)
        return result


class _Bands(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, bands: Bands) -> Tensor:
        ctx.dim, ctx.bands, ctx.shape = dim, bands, x.shape
        result = x.new_empty((*x.shape[:dim], bands.outputs, *x.shape[dim + 1 :]))
        for (start, stop), (low, high), matrix in bands.pieces:
            part = _times(matrix, x.narrow(dim, low, high - low), dim)
            result.narrow(dim, start, stop - start).copy_(part)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, dim = grads[0].new_zeros(ctx.shape), ctx.dim
        for (start, stop), (low, high), matrix in ctx.bands.pieces:
            part = _times(matrix.T, grads[0].narrow(dim, start, stop - start), dim)
            gradient.narrow(dim, low, high - low).add_(part)
        return gradient, None, None


def _times(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # torch interpolates in the type of x
        if dim == x.dim() - 1:
            return x @ matrix.T
        product = torch.matmul(matrix, x.flatten(dim + 1))
    return product.unflatten(-1, x.shape[dim + 1 :])


def take_nearest(x: Tensor, dim: int, rows: Tensor, gradient: Tensor) -> Tensor:
    """Return ``rows`` of ``x`` along ``dim``; what flows back goes to the rows ``gradient``."""
    result: Tensor = _TakeNearest.apply(x, dim, rows, gradient)
    return result


class _TakeNearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, rows: Tensor, gradient: Tensor) -> Tensor:
        ctx.dim, ctx.shape = dim, x.shape
        ctx.save_for_backward(gradient)
        return x.index_select(dim, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_add_(ctx.dim, rows, grads[0]), None, None, None
