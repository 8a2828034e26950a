"""Padding layers on a rank's share of the rows: constant, reflecting, replicating, circular."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import padding as kinds

from workbench.layers.carrier import Carrier, Declared, Forward, Seat
from workbench.layers.fetch import extend
from workbench.layers.windowed import Compute, Part, declared, on_needed_rows, positions
from workbench.traced import Refusal, Traced
from workbench.windows import Padding, Window

_MODES: dict[type, tuple[Padding, str]] = {
    kinds._ConstantPadNd: ("zeros", "constant"),
    kinds._ReflectionPadNd: ("reflect", "reflect"),
    kinds._ReplicationPadNd: ("replicate", "replicate"),
    kinds._CircularPadNd: ("circular", "circular"),
}
"""How the workbench calls a way of padding, and how torch does."""


def _mode(module: nn.Module) -> tuple[Padding, str]:
    return next(mode for kind, mode in _MODES.items() if isinstance(module, kind))


def _sides(module: nn.Module) -> list[tuple[int, int]]:
    """Return the rows put before and after, for each of the last dims in order; torch's last first.

    Negative ones are cut off.
    """
    given: Any = module.padding
    sides = [int(side) for side in given]
    return list(zip(sides[::2], sides[1::2], strict=True))[::-1]


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x, sides = arguments[0], _sides(module)
    mode, _ = _mode(module)
    windows = [
        Window(size, outputs, padding=before, mode=mode)
        for size, outputs, (before, _) in zip(
            x.shape[-len(sides) :], output_shape[-len(sides) :], sides, strict=True
        )
    ]
    refusals = []
    for dim, (before, after) in enumerate(sides, start=len(x.shape) - len(sides)):
        crop, pad = min(before, after), max(before, after)
        if mode == "circular" and crop < 0 < pad:
            # Torch goes round what is left of the rows; what goes beyond that it leaves undefined.
            undefined = x.shape[dim] + crop < pad
            concerned = x.labels if undefined else (x.labels[dim],)
            refused = tuple(name for label in concerned for name in positions(label))
            reason = (
                f"{type(module).__name__} cuts rows off one end of a dim and goes round at the "
                "other; use two layers"
            )
            refusals += [Refusal(refused, reason)] if refused else []
    return declared(module, x, output_shape, windows, tuple(refusals))


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    return on_needed_rows(module, seat, lambda part: _prepare(module, part))


def _prepare(module: nn.Module, part: Part) -> Compute:
    sides, (_, mode) = _sides(module), _mode(module)
    value = getattr(module, "value", 0.0)
    constant = mode == "constant"
    for cut in part.cuts:
        left = (cut.rows.before, cut.rows.after) if constant else (0, 0)
        sides[cut.dim - len(part.layer.input_shape)] = left
    rest = [side for both in reversed(sides) for side in both]

    def compute(x: Tensor) -> Tensor:
        for cut in () if constant else part.cuts:
            x = extend(x, cut.dim, cut.rows)
        if any(rest):
            x = F.pad(x, rest, mode, value if constant else None)
        return x

    return compute


CARRIERS: tuple[Carrier, ...] = (
    Carrier(
        (
            *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        _declare,
        _build,
    ),
)
