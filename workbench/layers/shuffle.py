"""Layers that move numbers between channels and positions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.layers.carrier import Carrier, Declared, Forward, Seat, empty_like_output
from workbench.layers.fetch import fetch_for
from workbench.layers.windowed import declared, output_sizes
from workbench.traced import Traced
from workbench.windows import Window


def _windows(
    module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> tuple[Window, ...]:
    found = []
    for size, outputs in zip(input_shape[-2:], output_shape[-2:], strict=True):
        if isinstance(module, nn.PixelShuffle):
            step = module.upscale_factor
            table = tuple((o // step, o // step + 1) for o in range(outputs))
            found.append(Window(size, outputs, table=table))
        else:
            step = module.downscale_factor  # type: ignore[assignment]
            found.append(Window(size, outputs, stride=step, span=step))
    return tuple(found)


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    source = arguments[0]
    said = declared(module, source, output_shape, _windows(module, source.shape, output_shape))
    channels = len(source.shape) - 3
    labels = tuple("" if dim == channels else x for dim, x in enumerate(said.labels))
    return Declared(labels, said.windows, refusals=said.refusals)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
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
        if isinstance(module, nn.PixelUnshuffle):
            return F.pixel_unshuffle(x, module.downscale_factor)
        assert isinstance(module, nn.PixelShuffle)
        x = F.pixel_shuffle(x, module.upscale_factor)
        ranges = seat.ranges(planned.layer.output_shape, planned.output)
        for dim, rows in zip(fetch.dims, fetch.rows, strict=True):
            start, stop = ranges[dim]
            x = x.narrow(dim, start - rows.start * module.upscale_factor, stop - start)
        return x

    return forward


def _declare_channels(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    return Declared(tuple("" if dim == 1 else x for dim, x in enumerate(arguments[0].labels)))


def _plain(module: nn.Module, seat: Seat) -> None:
    return None


CARRIERS: tuple[Carrier, ...] = (
    Carrier((nn.PixelShuffle, nn.PixelUnshuffle), _declare, _build),
    Carrier((nn.ChannelShuffle,), _declare_channels, _plain),
)
