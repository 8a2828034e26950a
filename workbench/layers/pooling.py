"""Pooling by windows on a rank's share of the rows.

The rank fetches the rows that its windows reach into, puts explicit padding round them, and lets
torch's own kernel run without any: so it sees the same windows as the serial one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.pooling import _LPPoolNd, _MaxPoolNd

from workbench.layers.carrier import Carrier, Declared, Forward, Seat, empty_like_output
from workbench.layers.fetch import Fetch, extend, fetch_for
from workbench.layers.windowed import declared, output_sizes
from workbench.traced import Refusal, Traced
from workbench.windows import Rows, Window

_DIMS = {
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d), 1),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d), 2),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d), 3),
}
_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, Sequence):
        return tuple(int(v) for v in value) * (dims if len(value) == 1 else 1)
    return (int(value),) * dims


def _dims(module: nn.Module) -> int:
    return next(dims for kind, dims in _DIMS.items() if isinstance(module, kind))


def _stride(module: nn.Module) -> Any:
    return module.kernel_size if module.stride is None else module.stride


def _windows(
    module: nn.Module, input_shape: Sequence[int], output_shape: Sequence[int]
) -> tuple[Window, ...]:
    """Return the windows of the pooled dims, the last ones."""
    dims = _dims(module)
    found = zip(
        input_shape[-dims:],
        output_shape[-dims:],
        _each(_stride(module), dims),
        _each(getattr(module, "padding", 0), dims),
        _each(module.kernel_size, dims),
        _each(getattr(module, "dilation", 1), dims),
        strict=True,
    )
    return tuple(
        Window(size, outputs, stride=s, padding=p, span=d * (k - 1) + 1)
        for size, outputs, s, p, k, d in found
    )


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    refusals: tuple[Refusal, ...] = ()
    if getattr(module, "return_indices", False):
        labels = tuple(x for x in arguments[0].labels if isinstance(x, str) and x)
        reason = f"{type(module).__name__}(return_indices=True) gives positions in the whole array"
        refusals = (Refusal(labels, f"{reason}; use return_indices=False"),)
    windows = _windows(module, arguments[0].shape, output_shape)
    if isinstance(module, _MaxPoolNd) and any(_sees_nothing(module, w) for w in windows):
        labels = tuple(x for x in arguments[0].labels if isinstance(x, str) and x)
        reason = (
            f"{type(module).__name__} has a window that sees nothing but padding, for which torch "
            "has no defined gradient; use less padding or dilation"
        )
        refusals = (*refusals, Refusal(labels, reason))
    return declared(module, arguments[0], output_shape, windows, refusals)


def _sees_nothing(module: _MaxPoolNd, window: Window) -> bool:
    """Return whether some window has all its rows in the padding."""
    dilations = _each(module.dilation, 1) if isinstance(module.dilation, int) else module.dilation
    return any(
        not any(0 <= row < window.size for row in range(low, high, dilation))
        for output in range(window.outputs)
        for low, high in [window.needs(output, output + 1)]
        for dilation in dilations
    )


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    plain = module.forward
    fetches = {id(planned): fetch_for(seat, planned) for planned in seat.calls}
    if not any(fetches.values()):
        return None
    dims = _dims(module)

    def forward(input: Tensor) -> Tensor:
        planned = seat.call(input)
        fetch = fetches[id(planned)]
        if fetch is None:
            return plain(input)
        sizes = output_sizes(seat, planned, input)
        x = fetch(input)
        if 0 in sizes:
            return empty_like_output(x, sizes)
        windows = _windows(module, planned.layer.input_shape, planned.layer.output_shape)
        first = input.dim() - dims
        ranges = seat.ranges(planned.layer.output_shape, planned.output)[first:]
        if isinstance(module, _MaxPoolNd):
            x = _padded(x, windows, fetch, first, -torch.inf)
            kernel, stride = _each(module.kernel_size, dims), _each(_stride(module), dims)
            result: Tensor = _MAX[dims - 1](
                x, kernel, stride, 0, _each(module.dilation, dims), ceil_mode=False
            )
            return result
        if isinstance(module, _LPPoolNd):
            power = float(module.norm_type)
            area = 1
            for size in _each(module.kernel_size, dims):
                area *= size
            x = _padded(x, windows, fetch, first, 0.0)
            divisors = _divisors(module, windows, ranges)
            mean = _added(x.pow(power), module, dims) / divisors.to(x.device, x.dtype)
            found = torch.sign(mean) * F.relu(mean.abs())
            return found.mul(area).pow(1.0 / power)
        x = _added(_padded(x, windows, fetch, first, 0.0), module, dims)
        return x / _divisors(module, windows, ranges).to(x.device, x.dtype)

    return forward


def _padded(x: Tensor, windows: Sequence[Window], fetch: Fetch, first: int, value: float) -> Tensor:
    """Return the rows that the windows of this rank see, and nothing more, in every pooled dim."""
    cut = dict(zip(fetch.dims, fetch.rows, strict=True))
    for number, window in enumerate(windows):
        dim = first + number
        rows = cut.get(dim)
        if rows is None:
            rows = window.rows(0, window.outputs)
            x = _needed(x, dim, rows)
        x = extend(x, dim, rows, value)
    return x


def _needed(x: Tensor, dim: int, rows: Rows) -> Tensor:
    if not rows.runs:
        return x.narrow(dim, 0, 0)
    ((start, stop),) = rows.runs
    return x.narrow(dim, start, stop - start)


def _added(x: Tensor, module: nn.Module, dims: int) -> Tensor:
    """Return the sums of all windows: an average whose divisor is 1."""
    kernel, stride = _each(module.kernel_size, dims), _each(_stride(module), dims)
    if dims == 1:  # torch's average over one dim takes no divisor
        wide = F.avg_pool2d(x.unsqueeze(-2), (1, *kernel), (1, *stride), divisor_override=1)
        return wide.squeeze(-2)
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    return pool(x, kernel, stride, divisor_override=1)


def _divisors(
    module: nn.Module, windows: Sequence[Window], ranges: Sequence[tuple[int, int]]
) -> Tensor:
    """Return what the sum of each of this rank's windows is divided by, as torch counts it.

    A window counts the rows up to the end of the padding, or those of the array alone if padding
    is not to be counted.
    """
    override = getattr(module, "divisor_override", None)
    if override is not None:
        return torch.tensor(float(override))
    with_padding = bool(getattr(module, "count_include_pad", True))
    total = torch.ones((), dtype=torch.float64)
    for window, (start, stop) in zip(windows, ranges, strict=True):
        counts = torch.tensor(_counts(window, start, stop, with_padding), dtype=torch.float64)
        total = total.unsqueeze(-1) * counts
    return total


@lru_cache(maxsize=512)
def _counts(window: Window, start: int, stop: int, with_padding: bool) -> tuple[int, ...]:
    found = []
    for output in range(start, stop):
        low, high = window.needs(output, output + 1)
        high = min(high, window.size + window.padding)
        if not with_padding:
            low, high = max(low, 0), min(high, window.size)
        found.append(high - low)
    return tuple(found)


CARRIERS: tuple[Carrier, ...] = (Carrier(tuple(_DIMS), _declare, _build),)
