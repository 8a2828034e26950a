"""Operations along whole dims: sums, means, softmax, norms; and how they are made of parts.

Where a dim that is summed over is cut in chunks, each chunk gives a partial result, and those are
combined. Moments are combined as in Chan, Golub, LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances" (1979): from the mean and the squared deviations of each
chunk, so that nothing is lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from workbench.arrays.boxes import Box, spread, whole
from workbench.arrays.moves import argument
from workbench.arrays.network import Node


class Along:
    """An operation that takes some dims whole, and treats every place of the others alike."""

    def dims(self, node: Node) -> set[int]:
        """Return the dims of the first array that are taken whole."""
        shape = node.shapes[0]
        if node.kind == "aten.native_layer_norm":
            return set(range(len(shape) - len(node.args[1]), len(shape)))
        place = {"aten.linalg_vector_norm": 2, "aten.norm": 2}.get(node.kind, 1)
        asked = argument(node, place, "dim", None)
        if asked is None or asked == []:
            return set(range(len(shape)))
        dims = [asked] if isinstance(asked, int) else asked
        return {dim % len(shape) for dim in dims}

    def _sources(self, node: Node) -> list[int]:
        """Return the dim of the first array that each dim of the result stands for."""
        every = list(range(len(node.shapes[0])))
        if len(node.shape) == len(every):
            return every
        gone = self.dims(node)
        return [dim for dim in every if dim not in gone]

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the box of the first array, whole along the dims; all of the others."""
        found = list(whole(node.shapes[0]))
        gone = self.dims(node)
        for run, dim in zip(box, self._sources(node), strict=True):
            if dim not in gone:
                found[dim] = run
        return [tuple(found), *(whole(shape) for shape in node.shapes[1:])]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return what torch makes of it, and of that the box."""
        made: Tensor = node(parts)
        gone = self.dims(node)
        for number, dim in enumerate(self._sources(node)):
            start, stop = box[number]
            if dim in gone and (start, stop) != (0, node.shape[number]):
                made = made.narrow(number, start, stop - start)
        return made


class Sum(Along):
    """A sum, a mean or an extreme, which can be made of partial ones."""

    def summed(self, node: Node) -> dict[int, tuple[int, ...]]:
        """Return the dims that are summed over, by the place of the array."""
        return {0: tuple(sorted(self.dims(node)))}

    def partial(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the result for some of the rows; a mean is still a sum."""
        dims, keep = sorted(self.dims(node)), len(node.shape) == len(node.shapes[0])
        x = parts[0]
        if node.kind in ("aten.amax", "aten.amin"):
            return (x.amax if node.kind == "aten.amax" else x.amin)(dims, keep)
        wide = torch.float64 if node.dtype.is_floating_point else node.dtype
        return x.sum(dims, keep, dtype=wide)

    def combine(self, node: Node, partials: Sequence[Tensor]) -> Tensor:
        """Return the result for all rows that the partial ones are for."""
        if node.kind in ("aten.amax", "aten.amin"):
            way = torch.maximum if node.kind == "aten.amax" else torch.minimum
            return reduce(way, partials)
        return torch.stack(list(partials)).sum(0)

    def finish(self, node: Node, box: Box, total: Tensor, parts: Sequence[Any]) -> Tensor:
        """Return the result, given the combined one."""
        if node.kind == "aten.mean":
            total = total / self._count(node)
        return total.to(node.dtype)

    def _count(self, node: Node) -> int:
        count = 1
        for dim in self.dims(node):
            count *= node.shapes[0][dim]
        return count


class Moments(Sum):
    """Mean and variance along dims, one before the other in a new first dim."""

    def dims(self, node: Node) -> set[int]:
        """Return the dims of the first array that are taken whole."""
        return set(node.args[1])

    def _sources(self, node: Node) -> list[int]:
        return list(range(len(node.shapes[0])))

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the box, whole along the dims."""
        return super().needs(node, box[1:])

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the moments."""
        made = self.finish(node, box, self.partial(node, box, parts), ())
        return made.narrow(0, box[0][0], box[0][1] - box[0][0])

    def partial(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return number, mean and squared deviations of some of the rows, in float64."""
        dims = tuple(sorted(self.dims(node)))
        variance, mean = torch.var_mean(parts[0], dims, correction=0, keepdim=True)
        count = parts[0].numel() // max(1, mean.numel())
        mean, variance = mean.double(), variance.double()
        return torch.stack((torch.full_like(mean, count), mean, variance * count))

    def combine(self, node: Node, partials: Sequence[Tensor]) -> Tensor:
        """Return those of all rows that the partial ones are for."""
        return reduce(_both, partials)

    def finish(self, node: Node, box: Box, total: Tensor, parts: Sequence[Any]) -> Tensor:
        """Return mean and variance."""
        count, mean, squares = total
        return torch.stack((mean, squares / count)).to(node.dtype)


def _both(one: Tensor, other: Tensor) -> Tensor:
    """Return number, mean and squared deviations of two sets of rows together."""
    count, gap = one[0] + other[0], other[1] - one[1]
    mean = one[1] + gap * (other[0] / count)
    squares = one[2] + other[2] + gap * gap * (one[0] * other[0] / count)
    return torch.stack((count, mean, squares))


class Normalized:
    """``(x - mean) / sqrt(variance + eps)``, by moments of the same array."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the box, and its moments."""
        return [box, ((0, 2), *spread(node.shapes[1][1:], box, node.shape))]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the normalized entries."""
        x, (mean, variance) = parts[0], parts[1]
        return (x - mean) * torch.rsqrt(variance + node.args[2])


_ALONG, _SUM = Along(), Sum()
_ALONG_NAMES = (
    *("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logsumexp", "sort"),
    *("native_layer_norm", "linalg_vector_norm", "argmax", "argmin", "prod", "var", "std", "topk"),
    *("any", "all", "logcumsumexp", "max", "min", "cummax", "cummin"),
)

RULES: dict[str, Any] = {
    **{f"aten.{name}": _ALONG for name in _ALONG_NAMES},
    **{f"aten.{name}": _SUM for name in ("sum", "mean", "amax", "amin")},
    "workbench.moments": Moments(),
    "workbench.normalized": Normalized(),
}
