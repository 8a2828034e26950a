"""What modules are given and return, with its labels: where a pipeline may cut a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from torch.utils import _pytree as pytree

from workbench.plan.stages import Call, Source
from workbench.traced import Flat, Label, Traced
from workbench.tracking.operation import tags_of
from workbench.tracking.tags import Merged, Tag, as_labels


class Passed:
    """Notes the tensors that go into calls of modules and come out of them, in order.

    Calls and tensors are numbered as the stages of a pipeline number them, see
    :class:`workbench.layers.stages.Stages`.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._arrays: dict[Source, Traced] = {}

    def begin(self, module: str) -> Call:
        """Return the call of ``module`` that begins now."""
        self._counts[module] += 1
        return Call(module, self._counts[module] - 1)

    def note(self, call: Call, end: Literal["argument", "result"], value: Any) -> None:
        """Note all tensors in what a call is given or returns."""
        tensors = [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
        for place, x in enumerate(tensors):
            labels = _labels(x)
            if any(labels):
                made = Traced(tuple(x.shape), labels, x.element_size(), x.requires_grad)
                self._arrays[Source(call, end, place)] = made

    def found(self, canonical: Callable[[Label], Label]) -> tuple[tuple[Source, Traced], ...]:
        """Return all that has labels, with the names of these that all agree on in the end."""
        return tuple(
            (source, replace(array, labels=tuple(map(canonical, array.labels))))
            for source, array in self._arrays.items()
        )


def _labels(x: Tensor) -> tuple[Label, ...]:
    """Return the labels of the dims of ``x``, those too that a view has merged into one."""
    tags = tags_of(x)
    return tuple(
        Flat(tuple(_parts(tag)), tag.beside) if isinstance(tag, Merged) else label
        for tag, label in zip(tags, as_labels(tags, x.shape), strict=True)
    )


def _parts(merged: Merged) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for tag, size in merged.parts:
        found += _parts(tag) if isinstance(tag, Merged) else [(_name(tag), size)]
    return found


def _name(tag: Tag) -> str:
    return tag if isinstance(tag, str) else ""
