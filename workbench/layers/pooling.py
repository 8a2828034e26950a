"""Pooling by windows on a rank's share of the rows.

The rank fetches the rows that its windows reach into and puts explicit padding round them along the
dims that are cut. Torch's own kernel then sees the same windows as the serial one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from workbench.layers.carrier import Carrier, Declared, Forward, Seat
from workbench.layers.fetch import extend
from workbench.layers.windowed import Compute, Part, declared, each, on_needed_rows, positions
from workbench.traced import Refusal, Traced
from workbench.windows import Window

_MAX = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POWER = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
_MAX_POOL: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVG_POOL: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _dims(module: nn.Module) -> int:
    """Return the number of dims that are pooled."""
    return next(
        number
        for number, kinds in enumerate(zip(_MAX, _AVERAGE, _POWER, strict=True), start=1)
        if isinstance(module, kinds)
    )


def _numbers(module: nn.Module, name: str) -> tuple[int, ...]:
    """Return kernel_size, stride, padding or dilation for each dim."""
    value = getattr(module, name, 1 if name == "dilation" else 0)
    number: Any = module.kernel_size if value is None else value
    return each(number, _dims(module))


def windows_of(
    module: nn.Module, input_shape: Sequence[int], output_shape: Sequence[int]
) -> list[Window]:
    """Return the window of every dim that is pooled."""
    dims, names = _dims(module), ("stride", "padding", "kernel_size", "dilation")
    return [
        Window(size, outputs, stride=stride, padding=padding, span=dilation * (kernel - 1) + 1)
        for size, outputs, stride, padding, kernel, dilation in zip(
            input_shape[-dims:],
            output_shape[-dims:],
            *(_numbers(module, name) for name in names),
            strict=True,
        )
    ]


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x, kind = arguments[0], type(module).__name__
    windows = windows_of(module, x.shape, output_shape)
    reasons = []
    if getattr(module, "return_indices", False):
        reasons.append(
            f"{kind} with return_indices=True gives places in the whole array, and a rank sees its "
            "share; use return_indices=False"
        )
    if isinstance(module, _MaxPoolNd) and any(
        map(_sees_nothing, windows, _numbers(module, "dilation"))
    ):
        reasons.append(
            f"{kind} has a window that sees nothing but padding, for which torch has no defined "
            "gradient; use less padding or dilation"
        )
    refused = tuple(name for label in x.labels for name in positions(label))
    refusals = tuple(Refusal(refused, reason) for reason in reasons)
    return declared(module, x, output_shape, windows, refusals)


def _sees_nothing(window: Window, dilation: int) -> bool:
    """Return whether some window has all its rows in the padding."""
    for output in range(window.outputs):
        low, high = window.needs(output, output + 1)
        first = low + dilation * max(0, -(low // dilation))
        if first >= min(high, window.size):
            return True
    return False


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    prepare = largest if isinstance(module, _MaxPoolNd) else _power
    if isinstance(module, _AvgPoolNd):
        prepare = average
    return on_needed_rows(module, seat, lambda part: prepare(module, part))


def largest(module: nn.Module, part: Part) -> Compute:
    """Return the maximum; of equal entries the first one gets the gradient, as in serial."""
    dims, ceil = _dims(module), module.ceil_mode
    kernel, stride, dilation = (
        _numbers(module, name) for name in ("kernel_size", "stride", "dilation")
    )
    padding = _left_padding(module, part)

    def compute(x: Tensor) -> Tensor:
        x = _extended(x, part, _lowest(x))
        return _MAX_POOL[dims - 1](x, kernel, stride, padding, dilation, ceil_mode=ceil)

    return compute


def average(module: nn.Module, part: Part) -> Compute:
    """Return the average, with the divisors that torch takes at the array's ends."""
    counts_padding = bool(module.count_include_pad)
    override = getattr(module, "divisor_override", None)
    kernel, stride = _numbers(module, "kernel_size"), _numbers(module, "stride")
    padding, ceil = _left_padding(module, part), module.ceil_mode
    more = () if override is None else (override,)  # AvgPool1d takes none
    pool = _AVG_POOL[len(kernel) - 1]
    scaled = _rescaling(module, part, counts_padding) if override is None else _as_it_is

    def compute(x: Tensor) -> Tensor:
        x = _extended(x, part, 0.0)
        return scaled(pool(x, kernel, stride, padding, ceil, counts_padding, *more))

    return compute


def _power(module: nn.Module, part: Part) -> Compute:
    """Return the power average, in torch's own steps; an infinite power is a maximum."""
    power, ceil = float(cast(float, module.norm_type)), module.ceil_mode
    kernel, stride = _numbers(module, "kernel_size"), _numbers(module, "stride")
    number, cells = len(kernel) - 1, prod(kernel)
    scaled = _rescaling(module, part, True)

    def compute(x: Tensor) -> Tensor:
        if abs(power) == inf:
            sign = 1 if power > 0 else -1
            x = _extended(x.abs() * sign, part, -inf)
            return _MAX_POOL[number](x, kernel, stride, 0, 1, ceil_mode=ceil) * sign
        x = _extended(x.pow(power), part, 0.0)
        mean = scaled(_AVG_POOL[number](x, kernel, stride, 0, ceil))
        return (torch.sign(mean) * F.relu(mean.abs())).mul(cells).pow(1.0 / power)

    return compute


def _left_padding(module: nn.Module, part: Part) -> tuple[int, ...]:
    """Return what torch is still to pad: nothing along the dims that are cut."""
    padding = _numbers(module, "padding")
    first = len(part.layer.input_shape) - len(padding)
    cut = {cut.dim - first for cut in part.cuts}
    return tuple(0 if number in cut else pad for number, pad in enumerate(padding))


def _extended(x: Tensor, part: Part, value: float) -> Tensor:
    for cut in part.cuts:
        x = extend(x, cut.dim, cut.rows, value)
    return x


def _lowest(x: Tensor) -> float:
    """Return what is no larger than any entry."""
    return -inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _rescaling(module: nn.Module, part: Part, counts_padding: bool) -> Compute:
    """Return what corrects averages along dims that are cut, where padding is like any other row.

    The divisor is a product over dims. Torch counts the rows of a window up to the end of the
    padding, and not those that only rounding up (``ceil_mode``) adds; or, if padding does not
    count, the rows of the array alone.
    """
    kernel, rank = _numbers(module, "kernel_size"), len(part.layer.input_shape)
    factors: list[tuple[list[float], list[int]]] = []
    for cut in part.cuts:
        rows = kernel[cut.dim - rank]
        counts = [
            _count(cut.window, output, counts_padding) for output in range(cut.start, cut.stop)
        ]
        if any(count != rows for count in counts):
            shape = [-1 if dim == cut.dim else 1 for dim in range(rank)]
            factors.append(([rows / count for count in counts], shape))

    def scaled(x: Tensor) -> Tensor:
        for numbers, shape in factors:
            x = x * x.new_tensor(numbers).view(shape)
        return x

    return scaled if factors else _as_it_is


def _count(window: Window, output: int, counts_padding: bool) -> int:
    low, high = window.needs(output, output + 1)
    if counts_padding:
        return min(high, window.size + window.padding) - low
    return min(high, window.size) - max(low, 0)


# A maximum over windows drawn at random.


def _declare_random(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x, kind = arguments[0], type(module).__name__
    refused = tuple(label for label in x.labels if isinstance(label, str) and label)
    reason = f"{kind} draws its windows at random, each rank others; use {kind[10:]}"
    dims = 3 if isinstance(module, nn.FractionalMaxPool3d) else 2
    labels = (*x.labels[:-dims], *([""] * dims))
    return Declared(labels, refusals=(Refusal(refused, reason),) if refused else ())


def _leave(module: nn.Module, seat: Seat) -> None:
    return None


CARRIERS: tuple[Carrier, ...] = (
    Carrier((*_MAX, *_AVERAGE, *_POWER), _declare, _build),
    Carrier((nn.FractionalMaxPool2d, nn.FractionalMaxPool3d), _declare_random, _leave),
)
