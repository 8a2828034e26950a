"""Products of matrices and linear layers, by boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.arrays.boxes import Box
from workbench.arrays.network import Node


class Product:
    """``mm``, ``bmm`` and ``linear``: rows of one array with columns of another."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return rows and columns, whole along the dim that is summed over."""
        x, y = node.shapes[:2]
        inner = (0, x[-1])
        if node.kind == "workbench.linear":
            return [(*box[:-1], inner), (box[-1], inner)]
        return [(*box[:-1], inner), (*box[: len(y) - 2], inner, box[-1])]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the products."""
        x, y = parts
        if node.kind == "workbench.linear":
            return torch.nn.functional.linear(x, y)
        return x @ y

    def summed(self, node: Node) -> dict[int, tuple[int, ...]]:
        """Return the inner dim of both."""
        x, y = node.shapes[:2]
        return {0: (len(x) - 1,), 1: (1 if node.kind == "workbench.linear" else len(y) - 2,)}

    def partial(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return the products over some of the inner dim."""
        return self.compute(node, box, parts)

    def combine(self, node: Node, partials: Sequence[Tensor]) -> Tensor:
        """Return the sum."""
        return added_up(partials)

    def finish(self, node: Node, box: Box, total: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Return the sum as it is."""
        return total


def added_up(partials: Sequence[Tensor]) -> Tensor:
    """Return the sum of arrays of one shape, in their order."""
    total = partials[0]
    for number, more in enumerate(partials[1:]):
        total = total.add_(more) if number else total + more
    return total


class ProductPlus:
    """``addmm`` and ``baddbmm``: ``beta * bias + alpha * (x @ y)``."""

    def needs(self, node: Node, box: Box) -> list[Box | None]:
        """Return the part of the bias, rows and columns."""
        bias, x, y = node.shapes
        own, sizes = box[len(box) - len(bias) :], node.shape[len(box) - len(bias) :]
        part = tuple(
            run if size == made else (0, 1)
            for run, size, made in zip(own, bias, sizes, strict=True)
        )
        inner = (0, x[-1])
        return [part, (*box[:-1], inner), (*box[: len(y) - 2], inner, box[-1])]

    def compute(self, node: Node, box: Box, parts: Sequence[Tensor]) -> Tensor:
        """Return what torch makes of the parts."""
        made: Tensor = node(parts)
        return made


RULES: dict[str, Any] = {
    "aten.mm": Product(),
    "aten.bmm": Product(),
    "workbench.linear": Product(),
    "aten.addmm": ProductPlus(),
    "aten.baddbmm": ProductPlus(),
}
