"""Convolutions and transposed convolutions on a rank's share of the rows.

Two ways lead to the same numbers. The general one fetches the rows that windows reach into, builds
the padded rows, and convolves those. The fast one uses that a convolution is linear: it convolves
the own rows, as they lie, while the fetched ones travel, and adds to the first and last rows of the
output what the fetched rows contribute. Both keep for backward what a serial layer keeps, its own
input, and the fetched rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from workbench.errors import RunError
from workbench.layers.carrier import OUT, Carrier, Declared, Forward, Seat
from workbench.layers.convolving import Convolve, composed
from workbench.layers.fetch import Fetch
from workbench.plan import LayerPlan
from workbench.traced import Flat, Label, Refusal, Traced
from workbench.windows import Padding, Rows, Run, Window

_MODES: dict[str, Padding] = {
    "zeros": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


def declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    """Return what a convolution needs where dims of its input are cut: its windows."""
    assert isinstance(module, _ConvNd)
    x = arguments[0]
    first = len(x.shape) - len(module.kernel_size)
    labels: list[Label] = [*x.labels[: first - 1], OUT]
    windows, refused = [], _cut_by_space(x.labels[first - 1])
    for number, window in enumerate(_windows(module, x.shape, output_shape)):
        label = x.labels[first + number]
        if isinstance(label, Flat):
            refused += _cut_by_space(label)
        elif label:
            windows.append((first + number, window))
        labels.append("" if isinstance(label, Flat) else label)
    reason = (
        f"{type(module).__name__} adds up over all positions of a dim that it takes for channels "
        "or for one long row; give it the positions in dims of their own"
    )
    return Declared(
        labels=tuple(labels),
        windows=tuple(windows),
        refusals=(Refusal(tuple(refused), reason),) if refused else (),
        role="conv",
        groups=module.groups,
    )


def build(module: nn.Module, seat: Seat) -> Forward | None:
    """Return the forward of a convolution on the rank's shares; None if no rows are cut."""
    assert isinstance(module, _ConvNd)
    if not any(cut.axis == "spatial" for call in seat.calls for cut in call.input):
        return None
    on_own_rows = module.forward
    shares = {id(call): _share(module, seat, call) for call in seat.calls}

    def forward(input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        batched = input.dim() == len(module.kernel_size) + 2
        # A rank may have been given the channels of its groups only.
        call = seat.call(input, aside=1 if batched else 0)
        share = shares[id(call)]
        if share is None:
            more = () if output_size is None else (output_size,)
            own: Tensor = on_own_rows(input, *more)
            return own
        if output_size is not None:
            _check_output_size(seat, call, share, output_size)
        x = input if batched else input.unsqueeze(0)
        weight = module.weight  # read once: a parametrization computes it anew each time
        out = convolve(share, x, weight, module.bias, _groups(module, x, weight))
        return out if batched else out.squeeze(0)

    return forward


CARRIERS = (
    Carrier(
        (
            nn.Conv1d,
            nn.Conv2d,
            nn.Conv3d,
            nn.ConvTranspose1d,
            nn.ConvTranspose2d,
            nn.ConvTranspose3d,
        ),
        declare,
        build,
    ),
)


@dataclass(frozen=True)
class Edge:
    """Output rows that also depend on fetched rows of one side.

    All numbers are local: row 0 is the rank's first. The output rows ``[start, start + count)`` see
    the input rows ``[low, high)``, of which those outside the own ones count here.
    """

    start: int
    count: int
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class ConvolutionShare:
    """One call of a convolution on one rank. All tuples have one item for each dim of the kernel.

    Attributes
    ----------
    windows:
        How outputs depend on inputs.
    padded:
        The rows that are convolved, in a dim that is cut or whose padding one number does not
        describe; None where the input is taken as it is and torch pads it with zeros.
    outputs:
        The range of output rows that the rank owns.
    stride, padding, dilation:
        As torch's own.
    fetch:
        Brings the rows; its dims are those of a batched input.
    """

    windows: tuple[Window, ...]
    padded: tuple[Rows | None, ...]
    outputs: tuple[tuple[int, int], ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    fetch: Fetch

    @property
    def empty(self) -> bool:
        """Whether the rank owns no output."""
        return any(stop <= start for start, stop in self.outputs)

    @cached_property
    def unreached(self) -> bool:
        """Whether no input reaches the rank's outputs, as may be in a transposed convolution."""
        return self.transposed and any(rows is not None and not rows.count for rows in self.padded)

    @cached_property
    def surplus(self) -> tuple[tuple[int, int, int, int], ...]:
        """What torch's transposed convolution of the rows makes too much, in each dim.

        (padding, output padding, rows to take off its start, off its end); those are negative where
        rows have to be put on, which no input reaches.
        """
        found = []
        for window, rows, (start, stop), dilation in zip(
            self.windows, self.padded, self.outputs, self.dilation, strict=True
        ):
            first, last = (rows.start, rows.stop) if rows is not None else (0, window.size)
            before = start - (first * window.stride - window.padding)
            after = (last - 1) * window.stride - window.padding + window.span - stop
            if 0 <= before - after < max(window.stride, dilation) and before >= 0:
                found.append((before, before - after, 0, 0))
            else:
                both = max(0, min(before, after))
                found.append((both, 0, before - both, after - both))
        return tuple(found)

    @cached_property
    def edges(self) -> tuple[Edge, ...] | None:
        """The edges of the fast way; None where only the general one gives the right rows."""
        if self.transposed or self.empty or len(self.fetch.dims) != 1:
            return None
        number = self.fetch.dims[0] - 2
        if any(rows is not None for place, rows in enumerate(self.padded) if place != number):
            return None
        return _edges(self.windows[number], self.fetch.own[0], self.outputs[number])


def convolve(
    share: ConvolutionShare, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """Return the rank's outputs, given its inputs ``x`` (samples, channels, rows, ...)."""
    if x.is_complex() or torch.is_autocast_enabled(x.device.type):
        return composed(share, x, weight, bias, groups)
    result: Tensor = Convolve.apply(x, weight, bias, share, groups)
    return result


def _cut_by_space(label: Label) -> list[str]:
    """Return the labels of positions in the label of a dim."""
    names = [name for name, _ in label.parts] if isinstance(label, Flat) else [label]
    return [name for name in names if name.startswith("dim")]


def _windows(
    module: _ConvNd, input_shape: Sequence[int], output_shape: Sequence[int]
) -> tuple[Window, ...]:
    """Return the window of every dim of the kernel."""
    dims = len(module.kernel_size)
    return tuple(
        Window(
            size,
            outputs,
            stride=stride,
            padding=padding,
            span=dilation * (kernel - 1) + 1,
            transposed=isinstance(module, _ConvTransposeNd),
            mode=_MODES[module.padding_mode],
        )
        for size, outputs, stride, padding, dilation, kernel in zip(
            input_shape[-dims:],
            output_shape[-dims:],
            module.stride,
            _first_paddings(module),
            module.dilation,
            module.kernel_size,
            strict=True,
        )
    )


def _first_paddings(module: _ConvNd) -> tuple[int, ...]:
    """Return the padding before the first row; "same" puts an odd one at the end, as torch does."""
    if module.padding == "same":
        spans = zip(module.dilation, module.kernel_size, strict=True)
        return tuple(dilation * (kernel - 1) // 2 for dilation, kernel in spans)
    if isinstance(module.padding, str):
        return (0,) * len(module.kernel_size)
    return tuple(int(padding) for padding in module.padding)


def _lopsided(module: _ConvNd, number: int) -> bool:
    """Return whether torch pads one row more at the end of this dim than at its start."""
    span = module.dilation[number] * (module.kernel_size[number] - 1)
    return module.padding == "same" and span % 2 == 1


def _share(module: _ConvNd, seat: Seat, planned: LayerPlan) -> ConvolutionShare | None:
    """Return this rank's part of a call; None if no dim of positions is cut."""
    halo = planned.halo(seat.plan.mesh)
    if halo is None:
        return None
    layer, dims = planned.layer, len(module.kernel_size)
    shift = dims + 2 - len(layer.input_shape)  # an input without samples gets a first dim
    cuts = sorted((c for c in planned.input if c.axis == "spatial"), key=lambda c: c.part)
    cut_dims = tuple(cut.dim + shift for cut in cuts)
    fetch = Fetch(halo, cut_dims, seat.comm("spatial"), seat.name)
    windows = _windows(module, layer.input_shape, layer.output_shape)
    outputs = seat.ranges(layer.output_shape, planned.output)[-dims:]
    padded: list[Rows | None] = []
    for number, window in enumerate(windows):
        if number + 2 in cut_dims:
            padded.append(fetch.rows[cut_dims.index(number + 2)])
        elif window.transposed or (window.mode == "zeros" and not _lopsided(module, number)):
            padded.append(None)
        else:
            padded.append(window.rows(0, window.outputs))
    return ConvolutionShare(
        windows,
        tuple(padded),
        outputs,
        tuple(module.stride),
        _first_paddings(module),
        tuple(module.dilation),
        isinstance(module, _ConvTransposeNd),
        fetch,
    )


def _edges(window: Window, own: Run, outputs: Run) -> tuple[Edge, ...] | None:
    """Return the outputs that see rows before and after the own ones; None if there is no share.

    The own rows must be enough for every window to lie over one end of them only.
    """
    (low, high), (start, stop) = own, outputs
    if window.stride != 1 or window.mode != "zeros" or high - low < max(1, window.span):
        return None
    found = []
    above = min(stop, low + window.padding) - start
    if low > 0 and above > 0:
        first = start - window.padding
        found.append(Edge(0, above, first - low, first - low + above - 1 + window.span))
    below = max(start, high + window.padding - window.span + 1)
    if high < window.size and below < stop:
        first = below - window.padding
        count = stop - below
        found.append(Edge(below - start, count, first - low, first - low + count - 1 + window.span))
    return tuple(found)


def _check_output_size(
    seat: Seat, planned: LayerPlan, share: ConvolutionShare, asked: Sequence[int]
) -> None:
    """Refuse a size that the code takes from its share: the plan has the whole one."""
    local = tuple(stop - start for start, stop in share.outputs)
    if tuple(asked)[-len(local) :] not in (local, planned.layer.output_shape[-len(local) :]):
        raise RunError(
            f"Layer {seat.name!r} was asked for outputs of size {tuple(asked)}, where the plan has "
            f"{planned.layer.output_shape} and {local} on rank {seat.rank}.",
            rank=seat.rank,
        )


def _groups(module: _ConvNd, x: Tensor, weight: Tensor) -> int:
    """Return the number of groups for a weight that may be a slice of the module's."""
    per_group = weight.shape[0] // module.groups if module.transposed else weight.shape[1]
    return module.groups if module.transposed else x.shape[1] // max(1, per_group)
