"""Operations that move entries about, by boxes: permute, slice, cat, expand and their like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.arrays.boxes import Box
from workbench.arrays.network import Node
from workbench.windows import Run

Needs = Callable[[Node, Box], Box]
Compute = Callable[[Node, Box, Tensor], Tensor]


class Move:
    """An operation on one array, made of two functions."""

    def __init__(self, needs: Needs, compute: Compute) -> None:
        self._needs, self._compute = needs, compute

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the box that is moved."""
        return [self._needs(node, box)]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return it where it belongs."""
        return self._compute(node, box, parts[0])


def argument(node: Node, place: int, name: str, default: Any) -> Any:
    """Return an argument that may be given by its place or by its name."""
    return node.args[place] if len(node.args) > place else dict(node.kwargs).get(name, default)


def _permutation(node: Node) -> list[int]:
    dims = len(node.shape)
    if node.kind == "aten.permute":
        return [dim % dims for dim in node.args[1]]
    order = list(range(dims))
    if node.kind == "aten.t":
        return order[::-1]
    a, b = (dim % dims for dim in node.args[1:3])
    order[a], order[b] = order[b], order[a]
    return order


def _permuted_needs(node: Node, box: Box) -> Box:
    found = list(box)
    for dim, source in enumerate(_permutation(node)):
        found[source] = box[dim]
    return tuple(found)


_PERMUTE = Move(_permuted_needs, lambda node, box, x: x.permute(_permutation(node)))


def _inserted(node: Node) -> int:
    return int(node.args[1]) % len(node.shape)


def _squeezed(node: Node) -> list[int]:
    """Return the dims of the array that are left."""
    shape = node.shapes[0]
    asked = argument(node, 1, "dim", None)
    if asked is None:
        asked = range(len(shape))
    dims = [asked] if isinstance(asked, int) else list(asked)
    gone = {dim % len(shape) for dim in dims if shape[dim] == 1}
    return [dim for dim in range(len(shape)) if dim not in gone]


def _squeeze_needs(node: Node, box: Box) -> Box:
    found: list[Run] = [(0, 1)] * len(node.shapes[0])
    for run, dim in zip(box, _squeezed(node), strict=True):
        found[dim] = run
    return tuple(found)


def _expand_needs(node: Node, box: Box) -> Box:
    shape = node.shapes[0]
    own, sizes = box[len(box) - len(shape) :], node.shape[len(box) - len(shape) :]
    return tuple(
        run if size == made else (0, 1) for run, size, made in zip(own, shape, sizes, strict=True)
    )


def _reshaped(node: Node, box: Box, x: Tensor) -> Tensor:
    return x.reshape([stop - start for start, stop in box])


def _expanded(node: Node, box: Box, x: Tensor) -> Tensor:
    return x.expand([stop - start for start, stop in box])


def _slice(node: Node) -> tuple[int, int, int]:
    """Return dim, first row and step."""
    dim = int(argument(node, 1, "dim", 0)) % len(node.shape)
    size = node.shapes[0][dim]
    start = argument(node, 2, "start", None) or 0
    step = int(argument(node, 4, "step", 1))
    start = max(0, start + size) if start < 0 else min(start, size)
    return dim, int(start), step


def _slice_needs(node: Node, box: Box) -> Box:
    dim, first, step = _slice(node)
    start, stop = box[dim]
    return (*box[:dim], (first + start * step, first + (stop - 1) * step + 1), *box[dim + 1 :])


def _sliced(node: Node, box: Box, x: Tensor) -> Tensor:
    dim, _, step = _slice(node)
    return x[(slice(None),) * dim + (slice(None, None, step),)]


def _select(node: Node) -> tuple[int, int]:
    dims = len(node.shapes[0])
    dim = int(node.args[1]) % dims
    return dim, int(node.args[2]) % node.shapes[0][dim]


def _select_needs(node: Node, box: Box) -> Box:
    dim, row = _select(node)
    return (*box[:dim], (row, row + 1), *box[dim:])


def _flipped(node: Node) -> set[int]:
    dims = node.args[1]
    return {dim % len(node.shape) for dim in dims}


def _flip_needs(node: Node, box: Box) -> Box:
    gone = _flipped(node)
    return tuple(
        (size - stop, size - start) if dim in gone else (start, stop)
        for dim, ((start, stop), size) in enumerate(zip(box, node.shape, strict=True))
    )


def _copy(node: Node, box: Box, x: Tensor) -> Tensor:
    dtype = dict(node.kwargs).get("dtype")
    return x if dtype is None else x.to(dtype)


class Filled:
    """An array like another one with one number in it."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return nothing."""
        return [None for _ in node.refs]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return as much of it as is asked for."""
        value = {"ones": 1, "new_ones": 1, "ones_like": 1}.get(node.kind[5:], 0)
        if "full" in node.kind:
            value = argument(node, 2 if node.kind == "aten.new_full" else 1, "fill_value", 0)
        return torch.full([stop - start for start, stop in box], value, dtype=node.dtype)


class Joined:
    """``cat`` and ``stack``: each array has its own rows of the result."""

    def __init__(self, new: bool) -> None:
        self.new = new

    def _dim(self, node: Node) -> int:
        return int(argument(node, 1, "dim", 0)) % len(node.shape)

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return each array's rows in the box."""
        dim, first, found = self._dim(node), 0, list[Box | None]()
        for shape in node.shapes:
            if not self.new and len(shape) != len(node.shape):  # torch skips these empty ones
                found.append(None)
                continue
            size = 1 if self.new else shape[dim]
            start, stop = max(box[dim][0], first), min(box[dim][1], first + size)
            own = () if self.new else ((start - first, stop - first),)
            rest = box[dim + 1 :]
            found.append((*box[:dim], *own, *rest) if start < stop else None)
            first += size
        return found

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows one after another."""
        dim = self._dim(node)
        given = [part.to(node.dtype) for part in parts if part is not None]
        if self.new:
            return torch.stack(given, dim)
        return given[0] if len(given) == 1 else torch.cat(given, dim)


class Rolled:
    """``roll`` and ``repeat``: rows of the result that lie elsewhere, once each."""

    def _rows(self, node: Node, dim: int, run: Run) -> list[int]:
        own = dim - (len(node.shape) - len(node.shapes[0]))
        size = node.shapes[0][own] if own >= 0 else 1
        shift = 0
        if node.kind == "aten.roll":
            dims = [d % len(node.shape) for d in node.args[2]]
            shift = sum(s for d, s in zip(dims, node.args[1], strict=True) if d == dim)
        return [(row - shift) % size for row in range(*run)]

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the range of the rows."""
        extra = len(node.shape) - len(node.shapes[0])
        found = []
        for dim, run in enumerate(box[extra:], start=extra):
            rows = self._rows(node, dim, run)
            found.append((min(rows), max(rows) + 1))
        return [tuple(found)]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows in their order."""
        extra = len(node.shape) - len(node.shapes[0])
        x = parts[0]
        for dim, run in enumerate(box[extra:], start=extra):
            rows = self._rows(node, dim, run)
            first = min(rows)
            if rows != list(range(first, first + x.shape[dim - extra])):
                places = torch.tensor([row - first for row in rows])
                x = x.index_select(dim - extra, places)
        return x.expand([stop - start for start, stop in box])


_COPY = Move(lambda node, box: box, _copy)
_FILLED = Filled()

RULES: dict[str, Any] = {
    **dict.fromkeys(("aten.permute", "aten.transpose", "aten.t", "aten.swapaxes"), _PERMUTE),
    "aten.unsqueeze": Move(
        lambda node, box: (*box[: _inserted(node)], *box[_inserted(node) + 1 :]), _reshaped
    ),
    "aten.squeeze": Move(_squeeze_needs, _reshaped),
    "aten.expand": Move(_expand_needs, _expanded),
    "aten.slice": Move(_slice_needs, _sliced),
    "aten.select": Move(_select_needs, lambda node, box, x: x.squeeze(_select(node)[0])),
    "aten.flip": Move(_flip_needs, lambda node, box, x: x.flip(sorted(_flipped(node)))),
    "aten.clone": _COPY,
    "aten._to_copy": _COPY,
    "aten.cat": Joined(new=False),
    "aten.stack": Joined(new=True),
    "aten.roll": Rolled(),
    "aten.repeat": Rolled(),
    **dict.fromkeys(
        [
            f"aten.{name}"
            for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones")
        ],
        _FILLED,
    ),
    "aten.new_full": _FILLED,
}
