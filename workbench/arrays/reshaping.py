"""``view`` and ``reshape`` by boxes.

The dims of both shapes fall into groups of the same number of entries. Within a group, a box of the
result covers a range of entries in their order in memory; the need is the smallest box of that
order that holds the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from workbench.arrays.boxes import Box, shape_of
from workbench.arrays.network import Node
from workbench.windows import Run

Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Dims of the array, and dims of the result, that hold the same entries."""


@lru_cache(maxsize=1024)
def groups(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Group, ...]:
    """Return the groups of dims, each as small as it can be."""
    found: list[Group] = []
    a = b = 0
    while a < len(old) or b < len(new):
        first, second = a, b
        left = right = 1
        if a < len(old):
            left, a = old[a], a + 1
        if b < len(new):
            right, b = new[b], b + 1
        while left != right:
            if (left < right and a < len(old)) or b >= len(new):
                left, a = left * old[a], a + 1
            else:
                right, b = right * new[b], b + 1
        found.append((tuple(range(first, a)), tuple(range(second, b))))
    return tuple(found)


def _flat(shape: Sequence[int], box: Sequence[Run]) -> Run:
    """Return the range of entries from the first of a box to its last, in their order."""
    first = last = 0
    for size, (start, stop) in zip(shape, box, strict=True):
        first, last = first * size + start, last * size + stop - 1
    return first, last + 1


def _holder(shape: Sequence[int], run: Run) -> list[Run]:
    """Return the smallest box of consecutive entries that holds a range of them."""
    found: list[Run] = []
    first, last = run[0], run[1] - 1
    apart = False
    for dim, size in enumerate(shape):
        step = prod(shape[dim + 1 :])
        if apart:
            found.append((0, size))
            continue
        low, high = first // step, last // step
        found.append((low, high + 1))
        first, last = first % step, last % step
        apart = low != high
    return found


def _sizes(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    return [shape[dim] for dim in dims]


class Reshape:
    """The same entries in their order, in other dims."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the smallest box that holds the entries."""
        old, new = node.shapes[0], node.shape
        found: list[Run] = [(0, 0)] * len(old)
        for mine, theirs in groups(old, new):
            run = _flat(_sizes(new, theirs), [box[dim] for dim in theirs])
            for dim, part in zip(mine, _holder(_sizes(old, mine), run), strict=True):
                found[dim] = part
        return [tuple(found)]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the entries of the box, out of those of its holder."""
        old, new, x = node.shapes[0], node.shape, parts[0]
        every = groups(old, new)
        given = self.needs(node, box)[0]
        assert given is not None
        x = x.reshape([prod(shape_of(tuple(given[dim] for dim in mine))) for mine, _ in every])
        for place, (mine, theirs) in enumerate(every):
            sizes, runs = _sizes(new, theirs), [box[dim] for dim in theirs]
            first = _flat(_sizes(old, mine), [given[dim] for dim in mine])[0]
            start, stop = _flat(sizes, runs)
            if stop - start == prod(b - a for a, b in runs):
                x = x.narrow(place, start - first, stop - start)
            else:
                steps = [prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
                entries = [
                    sum(i * step for i, step in zip(index, steps, strict=True)) - first
                    for index in product(*(range(*run) for run in runs))
                ]
                x = x.index_select(place, torch.tensor(entries))
        return x.reshape(shape_of(box))


_RESHAPE = Reshape()
RULES: dict[str, Any] = dict.fromkeys(
    ("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias"), _RESHAPE
)
