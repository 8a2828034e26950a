"""The rule of every operation: which boxes of its arrays a box of its result needs.

A rule answers two questions for one operation: what boxes of its arrays a box of its result needs,
and what the result is, given those boxes. Everything in graph mode is made of these two: an
operator on a dask array asks for one chunk, and a model on an image asks for one tile and goes back
through all its operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor

from workbench.arrays.boxes import Box, spread, whole, within
from workbench.arrays.contractions import RULES as CONTRACTIONS
from workbench.arrays.convolutions import RULES as CONVOLUTIONS
from workbench.arrays.moves import RULES as MOVES
from workbench.arrays.network import Node, operation
from workbench.arrays.pools import RULES as POOLS
from workbench.arrays.reductions import RULES as REDUCTIONS
from workbench.arrays.reshaping import RULES as RESHAPING
from workbench.windows import Run


class Rule(Protocol):
    """What an operation needs, and what it makes of that.

    In both, arrays are in the order of ``node.refs``. A need is None where nothing is needed; the
    part is then None, too. Other parts have exactly the boxes that were asked for.
    """

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the boxes of the arrays that ``box`` of the result needs."""

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return ``box`` of the result."""


class Pointwise:
    """Every entry of the result is made of the entries at its place; sizes of 1 spread out."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the same box of each array, where it has as much."""
        return [spread(shape, box, node.shape) for shape in node.shapes]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return what torch makes of the parts."""
        made: Tensor = node(parts)
        return made


class ByChannel:
    """Normalization by statistics that are constants, and parametric activations."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the box of the first array, and its channels of all others."""
        channels: Run = box[1]
        return [box, *([(channels,)] * (len(node.refs) - 1))]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return what torch makes of the parts."""
        made: Tensor = node(parts)
        return made


class Whole:
    """An operation that nobody knows: from whole arrays, and so always right."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return all of each array."""
        return [whole(shape) for shape in node.shapes]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the box of what torch makes of the arrays."""
        made: Tensor = node(parts)[within(box, whole(node.shape))]
        return made


_POINTWISE, _WHOLE = Pointwise(), Whole()
_MORE_POINTWISE = ("aten._prelu_kernel", "aten.alias", "aten.detach", "aten.lift_fresh_copy")
_BY_CHANNEL = ("aten.native_batch_norm", "aten._native_batch_norm_legit_no_training")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MORE_POINTWISE, _POINTWISE),
    **dict.fromkeys(_BY_CHANNEL, ByChannel()),
    **CONVOLUTIONS,
    **POOLS,
    **MOVES,
    **RESHAPING,
    **CONTRACTIONS,
    **REDUCTIONS,
}


@lru_cache(maxsize=1024)
def _rule(kind: str, name: str) -> Rule:
    if kind in _RULES:
        return _RULES[kind]
    return _POINTWISE if torch.Tag.pointwise in operation(name).tags else _WHOLE


def rule_of(node: Node) -> Rule:
    """Return the rule of an operation."""
    return _rule(node.kind, node.operation)


def knows(node: Node) -> bool:
    """Return whether the operation has a rule of its own."""
    return rule_of(node) is not _WHOLE


class Splittable(Protocol):
    """A rule whose result is made of partial ones along the dims that it sums over."""

    def summed(self, node: Node) -> dict[int, tuple[int, ...]]:
        """Return the dims that are summed over, by the place of the array.

        Arrays that have a place here have as many of them; others are needed at the end only.
        """

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the boxes of the arrays, whole along the dims that are summed over."""

    def partial(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the partial result, given the same range of the summed dims of each array."""

    def combine(self, node: Node, partials: Sequence[Tensor]) -> Tensor:
        """Return the partial result for what some partial ones are for."""

    def finish(self, node: Node, box: Box, total: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Return the result; ``parts`` are those of the arrays that are not summed over."""


def splittable(node: Node) -> Splittable | None:
    """Return the rule of an operation that can be made of partial results, or None."""
    rule = rule_of(node)
    if hasattr(rule, "summed") and cast(Splittable, rule).summed(node):
        return cast(Splittable, rule)
    return None
