"""Pooling, adaptive pooling and resampling by boxes, with the arithmetic of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from workbench.arrays.boxes import Box, whole
from workbench.arrays.network import Node
from workbench.errors import PlanError
from workbench.layers.adaptive import adaptive_window, pooled_by_windows
from workbench.layers.fetch import extend
from workbench.layers.pooling import average, largest, windows_of
from workbench.layers.resample import interpolated, sizes_of
from workbench.layers.taps import window_of
from workbench.layers.windowed import Compute, Cut, Part
from workbench.traced import Layer
from workbench.windows import Rows, Window


class Windowed:
    """Windows over the last dims of one array; subclasses say which, and how to compute."""

    def windows(self, node: Node) -> Sequence[Window]:
        """Return the windows of the last dims."""
        raise NotImplementedError

    def prepare(self, node: Node, part: Part) -> Compute:
        """Return what makes outputs out of the needed rows."""
        raise NotImplementedError

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the rows under the windows; the dims before them pass through."""
        every = self.windows(node)
        first = len(box) - len(every)
        rows: list[tuple[int, int]] = []
        for window, run in zip(every, box[first:], strict=True):
            runs = window.rows(*run).runs
            rows.append((runs[0][0], runs[-1][1]) if runs else (0, 0))
        return [(*box[:first], *rows)]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the outputs of the rows."""
        every = self.windows(node)
        first = len(box) - len(every)
        cuts = tuple(
            Cut(dim, window, window.rows(*box[dim]), *box[dim])
            for dim, window in enumerate(every, start=first)
            if box[dim] != (0, window.outputs)
        )
        layer = Layer(node.where, node.title, node.shapes[0], node.shape)
        return self.prepare(node, Part(layer, cuts, cast(Any, None), box))(parts[0])


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else dict(node.kwargs).get(name, default)


def _numbers(value: Any, dims: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * dims if len(given) == 1 else given


class Pool(Windowed):
    """A maximum or an average over windows of one size."""

    def __init__(self, dims: int, maximum: bool) -> None:
        self.dims, self.maximum = dims, maximum

    def _module(self, node: Node) -> nn.Module:
        if node.item:
            raise PlanError(
                f"{node.title} in {node.where!r} gives places in the whole array "
                "(return_indices=True), which a chunk does not know; use return_indices=False."
            )
        kernel = _numbers(node.args[1], self.dims)
        stride = _numbers(_argument(node, 2, "stride", ()) or kernel, self.dims)
        padding = _numbers(_argument(node, 3, "padding", 0), self.dims)
        if self.maximum:
            dilation = _numbers(_argument(node, 4, "dilation", 1), self.dims)
            ceil = _argument(node, 5, "ceil_mode", False)
            kind: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[self.dims - 1]
            made: nn.Module = kind(kernel, stride, padding, dilation, ceil_mode=ceil)
            return made
        ceil = _argument(node, 4, "ceil_mode", False)
        counted = _argument(node, 5, "count_include_pad", True)
        divisor = _argument(node, 6, "divisor_override", None)
        kind = (nn.AvgPool2d, nn.AvgPool3d)[self.dims - 2]
        made = kind(kernel, stride, padding, ceil, counted, divisor)
        return made

    def windows(self, node: Node) -> Sequence[Window]:
        """Return the windows of the last dims."""
        return windows_of(self._module(node), node.shapes[0], node.shape)

    def prepare(self, node: Node, part: Part) -> Compute:
        """Return what makes outputs out of the needed rows."""
        module = self._module(node)
        return largest(module, part) if self.maximum else average(module, part)


class AdaptivePool(Windowed):
    """A maximum or an average over windows that divide the array."""

    def __init__(self, dims: int, maximum: bool) -> None:
        self.dims, self.maximum = dims, maximum

    def windows(self, node: Node) -> Sequence[Window]:
        """Return the windows of the last dims."""
        sizes = zip(node.shapes[0][-self.dims :], node.shape[-self.dims :], strict=True)
        return [adaptive_window(size, made) for size, made in sizes]

    def prepare(self, node: Node, part: Part) -> Compute:
        """Return what makes outputs out of the needed rows."""
        if node.item:
            raise PlanError(
                f"{node.title} in {node.where!r} gives places in the whole array "
                "(return_indices=True), which a chunk does not know; use return_indices=False."
            )
        return pooled_by_windows(part, self.dims, average=not self.maximum)


class Resampling(Windowed):
    """Interpolation along the last dims."""

    def __init__(self, dims: int, mode: str) -> None:
        self.dims, self.mode = dims, mode

    def _module(self, node: Node) -> nn.Upsample:
        linear = not self.mode.startswith("nearest")
        align = bool(_argument(node, 2, "align_corners", False)) if linear else None
        first = 3 if linear else 2
        scales = [s for s in node.args[first : first + self.dims] if s is not None]
        scales += [s for name, s in node.kwargs if name.startswith("scales") and s is not None]
        if len(scales) == self.dims:
            return nn.Upsample(scale_factor=tuple(scales), mode=self.mode, align_corners=align)
        return nn.Upsample(tuple(node.shape[2:]), mode=self.mode, align_corners=align)

    def windows(self, node: Node) -> Sequence[Window]:
        """Return the windows of the last dims."""
        every = sizes_of(self._module(node), node.shapes[0], node.shape)
        return [window_of(sizes) for sizes in every]

    def prepare(self, node: Node, part: Part) -> Compute:
        """Return what makes outputs out of the needed rows."""
        return interpolated(self._module(node), part)


class Padding:
    """Padding by a constant, by reflection or by copies of the border, along the last dims."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def windows(self, node: Node) -> dict[int, Window]:
        """Return the windows of the dims that are padded."""
        sides, found = node.args[1], {}
        for number in range(len(sides) // 2):
            dim = len(node.shape) - 1 - number
            if sides[2 * number] or sides[2 * number + 1]:
                found[dim] = Window(
                    node.shapes[0][dim],
                    node.shape[dim],
                    padding=sides[2 * number],
                    mode=cast(Any, self.mode),
                )
        return found

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the rows that are copied."""
        rows = list(box)
        for dim, window in self.windows(node).items():
            runs = window.rows(*box[dim]).runs
            rows[dim] = (runs[0][0], runs[-1][1]) if runs else (0, 0)
        return [tuple(rows)]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows with what lies outside the array."""
        fill = float(_argument(node, 2, "value", 0) or 0)
        x = parts[0]
        # Where padding crops, only the rows that are left have been copied.
        if box == whole(node.shape) and tuple(x.shape) == tuple(node.shapes[0]):
            made: Tensor = node(parts)
            return made
        for dim, window in self.windows(node).items():
            rows = window.rows(*box[dim])
            x = extend(_runs(x, dim, rows), dim, rows, fill)
        return x


def _runs(x: Tensor, dim: int, rows: Rows) -> Tensor:
    """Return the runs of the rows out of the range from the first to the last of them."""
    if len(rows.runs) < 2:
        return x
    import torch

    first = rows.runs[0][0]
    return torch.cat([x.narrow(dim, a - first, b - a) for a, b in rows.runs], dim)


RULES: dict[str, Any] = {
    **{f"aten.max_pool{d}d_with_indices": Pool(d, True) for d in (2, 3)},
    **{f"aten.avg_pool{d}d": Pool(d, False) for d in (2, 3)},
    **{f"aten._adaptive_avg_pool{d}d": AdaptivePool(d, False) for d in (2, 3)},
    **{f"aten.adaptive_max_pool{d}d": AdaptivePool(d, True) for d in (2, 3)},
    **{f"aten.upsample_nearest{d}d": Resampling(d, "nearest") for d in (1, 2, 3)},
    **{f"aten._upsample_nearest_exact{d}d": Resampling(d, "nearest-exact") for d in (1, 2, 3)},
    "aten.upsample_linear1d": Resampling(1, "linear"),
    "aten.upsample_bilinear2d": Resampling(2, "bilinear"),
    "aten.upsample_bicubic2d": Resampling(2, "bicubic"),
    "aten.upsample_trilinear3d": Resampling(3, "trilinear"),
    "aten.constant_pad_nd": Padding("zeros"),
    **{f"aten.reflection_pad{d}d": Padding("reflect") for d in (1, 2, 3)},
    **{f"aten.replication_pad{d}d": Padding("replicate") for d in (1, 2, 3)},
}
