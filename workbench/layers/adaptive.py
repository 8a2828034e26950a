"""Adaptive pooling on a rank's share of the rows.

An output of size 1 along a cut dim is one sum, or maximum, over all ranks, and whole on every rank
from there on. Larger outputs are windows of several sizes: output row ``o`` sees the input rows
from ``floor(o size / outputs)`` to ``ceil((o + 1) size / outputs)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workbench.comm.comm import Comm
from workbench.layers.carrier import Carrier, Declared, Forward, Seat, empty_like_output
from workbench.layers.gather import all_reduce_sum
from workbench.layers.windowed import Compute, Cut, Part, declared, on_needed_rows, positions
from workbench.plan import LayerPlan
from workbench.traced import Refusal, Sums, Traced
from workbench.windows import Window

_AVERAGE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_MAX = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_AVG_POOL: tuple[Callable[..., Tensor], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)
_MAX_POOL: tuple[Callable[..., Any], ...] = (
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)
_NO_PLACE = torch.iinfo(torch.int32).max


def _dims(module: nn.Module) -> int:
    """Return the number of dims that are pooled."""
    kinds = zip(_AVERAGE, _MAX, strict=True)
    return next(n for n, both in enumerate(kinds, start=1) if isinstance(module, both))


def adaptive_window(size: int, outputs: int) -> Window:
    """Return the windows of adaptive pooling along one dim."""
    if outputs and size % outputs == 0:
        step = size // outputs
        return Window(size, outputs, stride=step, span=step)
    table = tuple((o * size // outputs, -(-(o + 1) * size // outputs)) for o in range(outputs))
    return Window(size, outputs, table=table)


def _to_one(module: nn.Module, output_shape: Sequence[int]) -> list[int]:
    """Return the dims of which one number is left, because the module says so."""
    dims = _dims(module)
    asked: Any = module.output_size
    wanted = (asked,) * dims if asked is None or isinstance(asked, int) else tuple(asked)
    wanted = wanted * dims if len(wanted) == 1 else wanted
    first = len(output_shape) - dims
    return [first + number for number, size in enumerate(wanted) if size == 1]


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x, dims, kind = arguments[0], _dims(module), type(module).__name__
    windows = [
        adaptive_window(size, outputs)
        for size, outputs in zip(x.shape[-dims:], output_shape[-dims:], strict=True)
    ]
    refusals: tuple[Refusal, ...] = ()
    if getattr(module, "return_indices", False):
        refused = tuple(name for label in x.labels for name in positions(label))
        reason = (
            f"{kind} with return_indices=True gives places in the whole array, and a rank sees its "
            "share; use return_indices=False"
        )
        refusals = (Refusal(refused, reason),)
    said = declared(module, x, output_shape, windows, refusals)
    whole = [dim for dim in _to_one(module, output_shape) if dim in dict(said.windows)]
    if not whole:
        return said
    return Declared(
        tuple("" if dim in whole else label for dim, label in enumerate(said.labels)),
        tuple((dim, window) for dim, window in said.windows if dim not in whole),
        tuple(replace(s, exact=False) for s in _sums(module, x, output_shape, whole)),
        said.refusals,
    )


def _sums(
    module: nn.Module, x: Traced, output_shape: tuple[int, ...], whole: list[int]
) -> tuple[Sums, ...]:
    """Return what it takes to make ``whole`` of the outputs along those dims."""
    labels = {dim: str(x.labels[dim]) for dim in whole}
    every, dims = tuple(dict.fromkeys(labels.values())), _dims(module)
    counts_samples = len(output_shape) > dims + 1
    numel = prod(output_shape[1:] if counts_samples else output_shape)
    back: tuple[Sums, ...] = ()
    if x.gradient:
        back = (Sums("gradient", "all_reduce", every, numel, "backward", counts_samples),)
    if isinstance(module, _AVERAGE):
        return (Sums("mean", "all_reduce", every, numel, "forward", counts_samples), *back)
    found = [Sums("largest", "all_gather", every, numel, "forward", counts_samples)]
    # Ranks along the first dim come in the order of places; along others places decide.
    unordered = tuple(
        dict.fromkeys(label for dim, label in labels.items() if dim > len(output_shape) - dims)
    )
    if unordered:
        halves = numel * _items_of_place(x.itemsize)
        found.append(Sums("places", "all_gather", unordered, halves, "forward", counts_samples))
    return (*found, *back)


def _items_of_place(itemsize: int) -> int:
    """Return how many items of an array a place takes: an integer of 4 bytes or the item's size."""
    return -(-4 // itemsize)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    by_windows = on_needed_rows(module, seat, lambda part: _by_windows(module, part))
    if by_windows is None:
        return None
    average = isinstance(module, _AVERAGE)
    made: dict[tuple[int, ...], _ToOne | None] = {}

    def forward(input: Tensor) -> Tensor:
        key = tuple(input.shape[1:])
        if key not in made:
            made[key] = _ToOne.of(module, seat, seat.call(input))
        to_one = made[key]
        if to_one is None:
            result: Tensor = by_windows(input)
            return result
        return to_one.mean(input) if average else to_one.largest(input)

    return forward


# Windows


def _by_windows(module: nn.Module, part: Part) -> Compute:
    return pooled_by_windows(part, _dims(module), average=isinstance(module, _AVERAGE))


def pooled_by_windows(part: Part, dims: int, *, average: bool) -> Compute:
    """Return adaptive pooling of the last ``dims`` dims, for the rank's own outputs.

    Windows of different sizes are laid one after another, all as long as the longest. A shorter one
    is filled up with zeros for an average, and with its last row again for a maximum.
    """
    sizes = list(part.layer.output_shape[-dims:])
    for cut in part.cuts:
        sizes[cut.dim - len(part.layer.input_shape)] = cut.outputs
    rank = len(part.layer.input_shape)
    laid = [(cut.dim, *_laid_out(cut, average)) for cut in part.cuts]
    pool = (_AVG_POOL if average else _MAX_POOL)[dims - 1]

    def compute(x: Tensor) -> Tensor:
        for dim, index, _ in laid:
            if index is not None:
                if average:
                    x = F.pad(x, [0, 0] * (rank - 1 - dim) + [0, 1])
                x = x.index_select(dim, torch.tensor(index, device=x.device))
        x = pool(x, sizes)
        for dim, _, factors in laid:
            if factors is not None:
                shape = [-1 if other == dim else 1 for other in range(rank)]
                x = x * x.new_tensor(factors).view(shape)
        return x

    return compute


def _laid_out(cut: Cut, average: bool) -> tuple[list[int] | None, list[float] | None]:
    """Return which needed row lies where, and what corrects the average of each window.

    None for rows that lie right as they are, and for averages that are right.
    """
    windows = [cut.window.needs(output, output + 1) for output in range(cut.start, cut.stop)]
    longest = max(stop - start for start, stop in windows)
    fill = cut.rows.count  # the row of zeros
    index = [
        row - cut.rows.start if row < stop else fill if average else stop - 1 - cut.rows.start
        for start, stop in windows
        for row in range(start, start + longest)
    ]
    if index == list(range(cut.rows.count)):
        return None, None
    factors = [longest / (stop - start) for start, stop in windows]
    return index, factors if average and any(factor != 1 for factor in factors) else None


# One number along every dim that is cut


class _ToOne:
    """Makes whole outputs along dims of which one number is left.

    Parameters
    ----------
    shape:
        That of the whole input.
    own:
        What the rank owns of the pooled dims.
    sizes:
        Those of the output along the pooled dims.
    ordered:
        Whether the ranks have their rows in the order of torch's places.
    """

    def __init__(
        self,
        seat: Seat,
        shape: Sequence[int],
        own: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        ordered: bool,
    ) -> None:
        self.comm, self.name = seat.comm("spatial"), seat.name
        self.shape, self.own, self.sizes = tuple(shape), tuple(own), list(sizes)
        self.ordered = ordered

    @classmethod
    def of(cls, module: nn.Module, seat: Seat, planned: LayerPlan) -> _ToOne | None:
        """Return what does it for a call; None if no dim that is cut goes to one number."""
        layer, dims = planned.layer, _dims(module)
        first = len(layer.input_shape) - dims
        cut = {c.dim for c in planned.input if c.axis == "spatial"}
        cut &= set(_to_one(module, layer.output_shape))
        if not cut:
            return None
        own = seat.ranges(layer.input_shape, planned.input)[first:]
        sizes = layer.output_shape[first:]
        return cls(seat, layer.input_shape[first:], own, sizes, cut == {first})

    @property
    def _share(self) -> float:
        """The part of every output's numbers that the rank owns."""
        counts = zip(self.own, self.shape, strict=True)
        return prod((stop - start) / size for (start, stop), size in counts)

    def _nothing(self, x: Tensor) -> Tensor:
        """Return zeros in the shape of the output, for a rank that owns nothing."""
        return empty_like_output(x, (*x.shape[: -len(self.sizes)], *self.sizes))

    def mean(self, x: Tensor) -> Tensor:
        """Return the means over all ranks' rows, on every rank."""
        own = self._nothing(x)
        if x.numel():
            own = _AVG_POOL[len(self.sizes) - 1](x, self.sizes) * self._share
        return all_reduce_sum(own, self.comm, f"{self.name}: mean", f"{self.name}: gradient")

    def largest(self, x: Tensor) -> Tensor:
        """Return the maxima over all ranks' rows, on every rank."""
        if x.numel():
            own, places = _MAX_POOL[len(self.sizes) - 1](x, self.sizes, return_indices=True)
            places = self._in_whole(places)
        else:
            own = self._nothing(x) - inf
            places = torch.full_like(own, _NO_PLACE, dtype=torch.int64)
        result: Tensor = _Largest.apply(own, None if self.ordered else places, self.comm, self.name)
        return result

    def _in_whole(self, places: Tensor) -> Tensor:
        """Return places in the rank's rows, all pooled dims in one number, as those in the array.

        A dim that is not cut is as long here as there.
        """
        found, step = torch.zeros_like(places), 1
        for (start, stop), size in zip(reversed(self.own), reversed(self.shape), strict=True):
            found += (places % (stop - start) + start) * step
            places, step = places // (stop - start), step * size
        return found


class _Largest(torch.autograd.Function):
    """The maximum over ranks; its gradient goes to the rank that has the first of the largest.

    ``places`` are those of the ranks' maxima in the whole array; None if ranks come in their order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor | None, comm: Comm, name: str) -> Tensor:
        every = torch.stack(comm.all_gather(x, name=f"{name}: largest"))
        largest = every.amax(0)
        candidates = every == largest
        if places is None:
            winner = candidates.int().argmax(0)
        else:
            of_all = torch.stack(_gather_places(places, x.dtype, comm, f"{name}: places"))
            winner = of_all.masked_fill(~candidates, _NO_PLACE).argmin(0)
        ctx.comm, ctx.name = comm, name
        ctx.save_for_backward(winner == comm.rank)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (mine,) = ctx.saved_tensors
        gradient = grads[0].clone(memory_format=torch.contiguous_format)
        total = ctx.comm.all_reduce(gradient, name=f"{ctx.name}: gradient")
        return total * mine, None, None, None


def _gather_places(places: Tensor, dtype: torch.dtype, comm: Comm, name: str) -> list[Tensor]:
    """Return the places of all ranks. Their bits travel as numbers of ``dtype``."""
    kind = torch.int64 if dtype.itemsize > 4 else torch.int32
    bits = places.to(kind).flatten().view(dtype)
    return [part.view(kind).view(places.shape).long() for part in comm.all_gather(bits, name=name)]


CARRIERS: tuple[Carrier, ...] = (Carrier((*_AVERAGE, *_MAX), _declare, _build),)
