"""Upsampling and downsampling by interpolation, on a rank's share of the rows.

Along a cut dim every output row is a weighted sum of a few input rows, its *taps*, which follow
from the whole sizes. Where each row simply becomes two or four, torch's own kernel gives the same
on the needed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import RunError
from workbench.layers.adaptive import adaptive_window, pooled_by_windows
from workbench.layers.carrier import Carrier, Declared, Forward, Seat
from workbench.layers.taps import (
    Bands,
    Sizes,
    exact_type,
    same_in_all_layouts,
    sources,
    take_nearest,
    taps,
    window_of,
)
from workbench.layers.windowed import Compute, Cut, Part, declared, on_needed_rows, positions
from workbench.traced import Refusal, Traced
from workbench.windows import Rows, Window


def _factors(module: nn.Upsample, dims: int) -> list[float | None]:
    """Return the factor for each dim by which torch goes; None where it goes by sizes."""
    factor = None if module.recompute_scale_factor else module.scale_factor
    if factor is None or module.mode == "area":
        return [None] * dims
    if isinstance(factor, Sequence):
        return [float(one) for one in factor]
    return [float(factor)] * dims


def sizes_of(
    module: nn.Upsample, input_shape: Sequence[int], output_shape: Sequence[int]
) -> list[Sizes]:
    """Return what is resampled along each dim from 2 on."""
    factors = _factors(module, len(input_shape) - 2)
    return [
        Sizes(size, outputs, module.mode, bool(module.align_corners), factor)
        for size, outputs, factor in zip(input_shape[2:], output_shape[2:], factors, strict=True)
    ]


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.Upsample)
    x = arguments[0]
    windows = []
    for label, sizes in zip(x.labels[2:], sizes_of(module, x.shape, output_shape), strict=True):
        if not label:
            windows.append(Window(sizes.size, sizes.outputs))
        elif module.mode == "area":
            windows.append(adaptive_window(sizes.size, sizes.outputs))
        else:
            windows.append(window_of(sizes))
    refused = tuple(name for label in x.labels for name in positions(label))
    reason = _doubt(module, sizes_of(module, x.shape, output_shape), x) if refused else ""
    refusals = (Refusal(refused, reason),) if reason else ()
    return declared(module, x, output_shape, windows, refusals)


def _doubt(module: nn.Upsample, every: list[Sizes], x: Traced) -> str:
    """Return why torch itself does not say what the result is, or nothing."""
    name = "size" if module.scale_factor is None else "scale_factor"
    how = f"{type(module).__name__} with {name}={getattr(module, name)}"
    if module.mode == "bicubic":
        stays = all(each.size == each.outputs for each in every)
        if stays and any(each.scale not in (None, 1.0) for each in every):
            return (
                f"{how} leaves all sizes as they are, and torch's gradient of that in mode "
                "'bicubic' is not that of what it computes; leave the layer out"
            )
    if module.mode.startswith("nearest"):
        dtype = torch.float64 if x.itemsize == 8 else torch.float32
        if not all(same_in_all_layouts(each, len(every), dtype) for each in every):
            return (
                f"{how} takes other rows for the nearest where channels are "
                "last in memory, which may be so on one rank only; use a scale factor that is a "
                "whole number"
            )
    return ""


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    assert isinstance(module, nn.Upsample)
    return on_needed_rows(module, seat, lambda part: interpolated(module, part))


def interpolated(module: nn.Upsample, part: Part) -> Compute:
    """Return what makes the rank's outputs out of the rows that they need."""
    shape = part.layer.input_shape
    if module.mode == "area":
        return pooled_by_windows(part, len(shape) - 2, average=True)
    sizes = sizes_of(module, shape, part.layer.output_shape)
    made: dict[Any, Compute] = {}

    def compute(x: Tensor) -> Tensor:
        kind = (exact_type(x.dtype), x.device)
        if kind not in made:
            made[kind] = _way(module, part, sizes, x)
        return made[kind](x)

    return compute


def _way(module: nn.Upsample, part: Part, sizes: list[Sizes], x: Tensor) -> Compute:
    """Return how the rank computes, for arrays of the type of ``x``."""
    by_sizes, scaled = [each.outputs for each in sizes], [each.scale for each in sizes]
    steps: list[Compute] = []
    repeats = all(_repeats(cut, sizes[cut.dim - 2], x) for cut in part.cuts)
    for cut in part.cuts if repeats else _by_taps(part, sizes):
        mine = sizes[cut.dim - 2]
        times = mine.outputs // mine.size if repeats else 1
        by_sizes[cut.dim - 2] = cut.rows.count * times
        scaled[cut.dim - 2] = float(times)
        steps.append(_narrow(cut, times) if repeats else _resampled(cut, mine, x))
    if repeats or len(steps) < len(sizes):  # torch does the dims that are left, or all
        how: dict[str, Any] = {"mode": module.mode, "align_corners": module.align_corners}
        by_factor = any(each.scale is not None for each in sizes)
        how |= {"scale_factor": tuple(scaled)} if by_factor else {"size": tuple(by_sizes)}
        steps.insert(0, lambda x: F.interpolate(x, **how))
    return _one_after_another(steps)


def _one_after_another(steps: Sequence[Compute]) -> Compute:
    def compute(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return compute


def _by_taps(part: Part, sizes: list[Sizes]) -> list[Cut]:
    """Return the dims that are cut, and those of which torch would not do the same alone.

    A cubic interpolation with a scale factor may leave a size as it is, and does something all the
    same; torch forgets its gradient where all sizes stay.
    """
    found, cut_dims = list(part.cuts), {cut.dim for cut in part.cuts}
    for dim, each in enumerate(sizes, start=2):
        stays = each.size == each.outputs and each.scale not in (None, 1.0)
        if each.mode == "bicubic" and stays and dim not in cut_dims:
            rows = Rows(0, each.size, ((0, each.size),))
            found.append(Cut(dim, Window(each.size, each.outputs), rows, 0, each.outputs))
    return found


def _repeats(cut: Cut, sizes: Sizes, x: Tensor) -> bool:
    """Return whether torch makes the same of the needed rows alone, with some to be cut off.

    For interpolation only where every place is an exact number, so that it is the same there.
    """
    times, rest = divmod(sizes.outputs, sizes.size)
    if rest or times == 0 or sizes.align_corners or sizes.scale not in (None, float(times)):
        return False
    if not sizes.mode.startswith("nearest"):
        return times in (1, 2, 4, 8)
    dims, dtype = x.dim() - 2, exact_type(x.dtype)
    for size in {sizes.size, cut.rows.count}:
        scaled = Sizes(size, size * times, sizes.mode, False, sizes.scale)
        found = sources(scaled, dims, dtype, x.device.type)
        right = torch.arange(size).repeat_interleave(times)
        if not (torch.equal(found.rows, right) and torch.equal(found.gradient, right)):
            return False
    return True


def _narrow(cut: Cut, times: int) -> Compute:
    return lambda x: x.narrow(cut.dim, cut.start - cut.rows.start * times, cut.outputs)


def _resampled(cut: Cut, sizes: Sizes, x: Tensor) -> Compute:
    """Return the resampling along one cut dim, by taps."""
    dim, dtype = cut.dim, exact_type(x.dtype)

    def own(rows: Tensor) -> Tensor:
        return (rows[..., cut.start : cut.stop] - cut.rows.start).to(x.device)

    if sizes.mode.startswith("nearest"):
        found = sources(sizes, x.dim() - 2, dtype, x.device.type)
        rows, gradient = own(found.rows), own(found.gradient)
        _check(cut, rows, gradient)
        if torch.equal(rows, gradient):
            return lambda x: x.index_select(dim, rows)
        return lambda x: take_nearest(x, dim, rows, gradient)
    both = taps(sizes, dtype)
    places = own(both.rows)
    _check(cut, places)
    weights = both.weights[:, cut.start : cut.stop].to(x.device, x.dtype)
    bands = Bands(places, weights)
    return lambda x: bands(x, dim)


def _check(cut: Cut, *rows: Tensor) -> None:
    """Refuse to go by rows that were not fetched: another device may round in its own way."""
    if any(int(each.min()) < 0 or int(each.max()) >= cut.rows.count for each in rows):
        raise RunError(
            f"A resampling needs rows of dim {cut.dim} that the plan has not foreseen; give a size "
            "or a scale factor that is a whole number."
        )


CARRIERS: tuple[Carrier, ...] = (
    Carrier((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _declare, _build),
)
