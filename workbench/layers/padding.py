"""Padding layers on a rank's share of the rows: constant, reflecting, replicating, circular."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import padding as kinds

from workbench.layers.carrier import Carrier, Declared, Forward, Seat, empty_like_output
from workbench.layers.fetch import extend, fetch_for
from workbench.layers.windowed import declared, output_sizes
from workbench.traced import Traced
from workbench.windows import Padding, Window

_MODES: dict[type, Padding] = {
    kinds._ConstantPadNd: "zeros",
    kinds._ReflectionPadNd: "reflect",
    kinds._ReplicationPadNd: "replicate",
    kinds._CircularPadNd: "circular",
}


def _windows(
    module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> tuple[Window, ...]:
    """Return the windows of the last dims; torch lists paddings from the last dim on."""
    mode = next(mode for kind, mode in _MODES.items() if isinstance(module, kind))
    sides = [int(side) for side in module.padding]  # type: ignore[union-attr]
    count = len(sides) // 2
    before = sides[0::2][::-1]
    sizes = zip(input_shape[-count:], output_shape[-count:], before, strict=True)
    return tuple(Window(size, outputs, padding=pad, mode=mode) for size, outputs, pad in sizes)


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    windows = _windows(module, arguments[0].shape, output_shape)
    return declared(module, arguments[0], output_shape, windows)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    plain = module.forward
    fetches = {id(planned): fetch_for(seat, planned) for planned in seat.calls}
    if not any(fetches.values()):
        return None
    value = float(getattr(module, "value", 0.0))

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
        first = input.dim() - len(windows)
        for dim, rows in zip(fetch.dims, fetch.rows, strict=True):
            x = extend(x, dim, rows, value)
        for number, window in enumerate(windows):
            dim = first + number
            if dim not in fetch.dims:
                rows = window.rows(0, window.outputs)
                if rows.runs != ((0, window.size),):
                    start = rows.runs[0][0] if rows.runs else 0
                    x = x.narrow(dim, start, rows.count)
                x = extend(x, dim, rows, value)
        return x

    return forward


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
