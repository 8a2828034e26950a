"""Layers that move numbers between channels and positions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.layers.carrier import Carrier, Declared, Forward, Seat
from workbench.layers.windowed import Compute, Part, declared, on_needed_rows, positions
from workbench.traced import Refusal, Traced
from workbench.windows import Window


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x, channels = arguments[0], len(output_shape) - 3
    sizes = zip(x.shape[-2:], output_shape[-2:], strict=True)
    if isinstance(module, nn.PixelShuffle):  # each row becomes several
        step = module.upscale_factor
        windows = [Window(a, b, stride=step, span=step, transposed=True) for a, b in sizes]
    else:
        assert isinstance(module, nn.PixelUnshuffle)
        step = module.downscale_factor
        windows = [Window(a, b, stride=step, span=step) for a, b in sizes]
    said = declared(module, x, output_shape, windows, _mixes_channels(module, x, channels))
    labels = tuple("" if dim == channels else label for dim, label in enumerate(said.labels))
    return Declared(labels, said.windows, refusals=said.refusals)


def _mixes_channels(module: nn.Module, x: Traced, dim: int) -> tuple[Refusal, ...]:
    """Refuse positions in the dim that the layer takes for channels, which it moves about."""
    reason = (
        f"{type(module).__name__} takes dim {dim} for channels and moves them about; give it the "
        "positions in other dims"
    )
    label = x.labels[dim]
    refused = positions(label) if isinstance(label, str) else []  # others are gathered before
    return (Refusal(tuple(refused), reason),) if refused else ()


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    return on_needed_rows(module, seat, lambda part: _prepare(module, part))


def _prepare(module: nn.Module, part: Part) -> Compute:
    def compute(x: Tensor) -> Tensor:
        if isinstance(module, nn.PixelUnshuffle):
            return F.pixel_unshuffle(x, module.downscale_factor)
        assert isinstance(module, nn.PixelShuffle)
        step = module.upscale_factor
        x = F.pixel_shuffle(x, step)
        for cut in part.cuts:  # the first and the last of the needed rows may give too many
            x = x.narrow(cut.dim, cut.start - cut.rows.start * step, cut.outputs)
        return x

    return compute


def _declare_channels(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.ChannelShuffle)
    x = arguments[0]
    labels = tuple("" if dim == 1 else label for dim, label in enumerate(x.labels))
    return Declared(labels, refusals=_mixes_channels(module, x, 1))


def _leave(module: nn.Module, seat: Seat) -> None:
    return None


CARRIERS: tuple[Carrier, ...] = (
    Carrier((nn.PixelShuffle, nn.PixelUnshuffle), _declare, _build),
    Carrier((nn.ChannelShuffle,), _declare_channels, _leave),
)
