"""Upsampling and downsampling by interpolation, on a rank's share of the rows.

Along a cut dim every output row is a weighted sum of a few input rows, its *taps*. Their places and
weights are those of torch's kernels, for the whole size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.layers.carrier import Carrier, Declared, Forward, Seat, empty_like_output
from workbench.layers.fetch import fetch_for
from workbench.layers.windowed import declared, output_sizes
from workbench.traced import Refusal, Traced
from workbench.windows import Window

Taps = tuple[tuple[tuple[int, float], ...], ...]
"""For each output row its input rows with their weights."""

_CUBIC = -0.75  # the parameter of Keys (1981) that torch uses


@lru_cache(maxsize=256)
def taps(size: int, outputs: int, mode: str, align: bool, scale: float | None) -> Taps:
    """Return the taps of every output row; ``scale`` is what the user gave, if that is to count."""
    if mode.startswith("nearest"):
        places = torch.arange(size, dtype=torch.float32).view(1, 1, size)
        factor = None if scale is None else scale
        asked = {"size": outputs} if factor is None else {"scale_factor": factor}
        found = F.interpolate(places, mode=mode, recompute_scale_factor=None, **asked)
        return tuple(((int(row), 1.0),) for row in found.flatten().tolist())
    step = _step(size, outputs, align, scale)
    rows = []
    for output in range(outputs):
        place = output * step if align else (output + 0.5) * step - 0.5
        if mode == "bicubic":
            rows.append(_cubic(place, size))
            continue
        place = max(0.0, place)
        low = min(int(place), size - 1)
        share = min(max(place - low, 0.0), 1.0)
        high = min(low + 1, size - 1)
        rows.append(((low, 1.0 - share), (high, share)))
    return tuple(rows)


def _step(size: int, outputs: int, align: bool, scale: float | None) -> float:
    """Return how many input rows lie between two output rows."""
    if align:
        return (size - 1) / (outputs - 1) if outputs > 1 else 0.0
    return 1.0 / scale if scale else size / outputs


def _cubic(place: float, size: int) -> tuple[tuple[int, float], ...]:
    """Return the four taps of cubic convolution (Keys, 1981); rows outside are the nearest ones."""
    base = math.floor(place)
    share, a = place - base, _CUBIC

    def near(x: float) -> float:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = (far(share + 1), near(share), near(1 - share), far(2 - share))
    return tuple(
        (min(max(base + offset, 0), size - 1), weight)
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)
    )


def _all_taps(
    module: nn.Upsample, input_shape: Sequence[int], output_shape: Sequence[int]
) -> tuple[Taps, ...]:
    dims = len(input_shape) - 2
    factor = None if module.recompute_scale_factor else module.scale_factor
    given = [None] * dims
    if isinstance(factor, int | float):
        given = [float(factor)] * dims  # type: ignore[list-item]
    elif factor is not None:
        given = [float(each) for each in factor]  # type: ignore[misc]
    return tuple(
        taps(size, outputs, module.mode, bool(module.align_corners), scale)
        for size, outputs, scale in zip(input_shape[2:], output_shape[2:], given, strict=True)
    )


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.Upsample)
    source = arguments[0]
    windows = []
    for number, found in enumerate(_all_taps(module, source.shape, output_shape)):
        table = tuple((min(r for r, _ in row), max(r for r, _ in row) + 1) for row in found)
        windows.append(Window(source.shape[number + 2], len(table), table=table))
    refusals: tuple[Refusal, ...] = ()
    return declared(module, source, output_shape, windows, refusals)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    assert isinstance(module, nn.Upsample)
    plain = module.forward
    fetches = {id(planned): fetch_for(seat, planned) for planned in seat.calls}
    if not any(fetches.values()):
        return None

    def forward(input: Tensor) -> Tensor:
        planned = seat.call(input)
        fetch = fetches[id(planned)]
        if fetch is None:
            return plain(input)
        sizes = output_sizes(seat, planned, input)
        x = fetch(input)
        if 0 in sizes:
            return empty_like_output(x, sizes)
        layer = planned.layer
        ranges = seat.ranges(layer.output_shape, planned.output)
        every = _all_taps(module, layer.input_shape, layer.output_shape)
        for dim, found in enumerate(every, start=2):
            first = fetch.rows[fetch.dims.index(dim)].start if dim in fetch.dims else 0
            start, stop = ranges[dim]
            x = _weighted(x, dim, found[start:stop], first)
        return x

    return forward


def _weighted(x: Tensor, dim: int, rows: Taps, first: int) -> Tensor:
    """Return the weighted sums of taps along ``dim``, whose row 0 is row ``first`` of the array."""
    shape = [1] * x.dim()
    shape[dim] = len(rows)
    total: Tensor | None = None
    for number in range(len(rows[0])):
        index = torch.tensor([row[number][0] - first for row in rows], device=x.device)
        part = x.index_select(dim, index)
        if len(rows[0]) > 1:
            weights = torch.tensor([row[number][1] for row in rows], dtype=x.dtype, device=x.device)
            part = part * weights.view(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


CARRIERS: tuple[Carrier, ...] = (
    Carrier((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _declare, _build),
)
