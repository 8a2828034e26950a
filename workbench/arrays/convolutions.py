"""Convolutions and transposed convolutions by boxes, with the arithmetic of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from workbench.arrays.boxes import Box
from workbench.arrays.contractions import added_up
from workbench.arrays.network import Node
from workbench.layers.convolution import ConvolutionShare
from workbench.layers.convolving import outputs, padded
from workbench.windows import Run, Window


class _NoFetch:
    """Nothing is fetched: the rows are there."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.dims = dims


class Convolution:
    """``aten.convolution(x, weight, bias, stride, padding, dilation, transposed, ..., groups)``."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the rows under the windows, and the filters of the channels."""
        weight = node.shapes[1]
        first, last = _groups(node, box[1])
        groups = node.args[8]
        channels = node.shapes[0][1] // groups
        rows: list[Run] = []
        for window, (start, stop) in zip(windows(node), box[2:], strict=True):
            runs = window.rows(start, stop).runs
            rows.append(runs[0] if runs else (0, 0))
        x: Box = (box[0], (first * channels, last * channels), *rows)
        filters = _filters(node, box[1])
        rest = tuple((0, size) for size in weight[2:])
        if node.args[6]:
            kernel: Box = (x[1], filters if groups == 1 else (0, weight[1]), *rest)
        else:
            kernel = (filters, (0, weight[1]), *rest)
        return [x, kernel, *([(filters,)] if node.args[2] is not None else [])]

    def summed(self, node: Node) -> dict[int, tuple[int, ...]]:
        """Return the channels of the input; nothing where they fall into groups."""
        if node.args[8] != 1:
            return {}
        return {0: (1,), 1: (0,) if node.args[6] else (1,)}

    def partial(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return what some of the channels add to the outputs."""
        return self._outputs(node, box, parts[0], parts[1], None)

    def combine(self, node: Node, partials: Sequence[Tensor]) -> Tensor:
        """Return the sum."""
        return added_up(partials)

    def finish(self, node: Node, box: Box, total: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Return the outputs: the sum, and the bias."""
        return total + parts[0].view(-1, *(1,) * (len(box) - 2)) if parts else total

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the outputs of the rows."""
        bias = parts[2] if node.args[2] is not None else None
        return self._outputs(node, box, parts[0], parts[1], bias)

    def _outputs(
        self, node: Node, box: Box, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        _, _, _, stride, padding, dilation, transposed, _, _ = node.args
        every = windows(node)
        first, last = _groups(node, box[1])
        rows = [w.rows(*run) for w, run in zip(every, box[2:], strict=True)]
        cut = [run != (0, w.outputs) for w, run in zip(every, box[2:], strict=True)]
        share = ConvolutionShare(
            every,
            tuple(r if c else None for r, c in zip(rows, cut, strict=True)),
            box[2:],
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            transposed,
            cast(Any, _NoFetch(tuple(dim for dim, c in enumerate(cut, start=2) if c))),
        )
        made = outputs(share, padded(share, x), weight, bias, last - first)
        filters = _filters(node, box[1])
        if filters != box[1]:
            made = made.narrow(1, box[1][0] - filters[0], box[1][1] - box[1][0])
        return made


def windows(node: Node) -> tuple[Window, ...]:
    """Return the window of every dim of the kernel."""
    _, _, _, stride, padding, dilation, transposed, _, _ = node.args
    return tuple(
        Window(
            size,
            made,
            stride=s,
            padding=p,
            span=d * (kernel - 1) + 1,
            transposed=transposed,
        )
        for size, made, s, p, d, kernel in zip(
            node.shapes[0][2:],
            node.shape[2:],
            stride,
            padding,
            dilation,
            node.shapes[1][2:],
            strict=True,
        )
    )


def _groups(node: Node, channels: Run) -> Run:
    """Return the groups that make some channels of the result."""
    each = node.shape[1] // node.args[8]
    return channels[0] // each, -(-channels[1] // each)


def _filters(node: Node, channels: Run) -> Run:
    """Return the channels to make: all of each group that is concerned."""
    if node.args[8] == 1:
        return channels
    each = node.shape[1] // node.args[8]
    first, last = _groups(node, channels)
    return first * each, last * each


RULES: dict[str, Any] = {"aten.convolution": Convolution()}
