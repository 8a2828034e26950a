"""One operation of torch on tagged arrays, and the register of rules for them.

A rule takes an :class:`Operation` and returns the tags of every result. What has no rule is taken
to mix everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from workbench.traced import Label, Mix, Traced
from workbench.tracking.naming import advice_for, user_name
from workbench.tracking.tags import (
    Even,
    Lost,
    Merged,
    Names,
    Tag,
    Tags,
    as_labels,
    labels_in,
    lost,
    lost_in,
)


class Operation:
    """One call of an operation of torch, with the tags of its arguments.

    Attributes
    ----------
    name:
        As aten has it, without the underscore of an operation in place.
    given:
        The arguments by name.
    tensors, results:
        All tensors among the arguments, and among the results.
    """

    def __init__(
        self,
        name: str,
        given: dict[str, Any],
        tensors: Sequence[Tensor],
        results: Sequence[Tensor],
        names: Names,
        report: Callable[[Sequence[Label], str, str, bool], Mix | None],
    ) -> None:
        self.name, self.given, self.tensors, self.results = name, given, tensors, results
        self.names, self._report = names, report

    @property
    def first(self) -> Tensor:
        """The first tensor among the arguments."""
        return self.tensors[0]

    @property
    def said(self) -> str:
        """The operation as a user calls it."""
        dims = self.first.dim() if self.tensors else 0
        return user_name(self.name, dims, bool(self.given.get("transposed")))

    def dims(self, key: str = "dim", of: Tensor | None = None) -> list[int]:
        """Return the dims that argument ``key`` names; all of them if it names none."""
        tensor = self.first if of is None else of
        value = self.given.get(key)
        if value is None or value == []:
            return list(range(tensor.dim()))
        values = value if isinstance(value, list | tuple) else [value]
        return [v % tensor.dim() if tensor.dim() else 0 for v in values]

    def mix(
        self,
        labels: Iterable[Label],
        what: str = "",
        concerned: Sequence[int] = (),
        advice: str = "",
        random: bool = False,
    ) -> None:
        """Report that ``labels`` are mixed here."""
        found = self.names.all(labels)
        dims = self.first.dim() if self.tensors else 0
        where = (
            f" over dim{'s' * (len(concerned) > 1)} {' and '.join(map(str, concerned))}"
            if concerned
            else ""
        )
        advice = advice or advice_for(self.said, dims, concerned)
        self._report(found, what or f"{self.said}{where}", advice, random)

    def merged(self, parts: tuple[tuple[Tag, int], ...]) -> Merged:
        """Return the tag of dims that are merged here, with what to say if that is no good."""
        shape = tuple(self.results[0].shape)
        name = "flatten" if self.results[0].dim() < self.first.dim() else self.said
        return Merged(parts, self._origin(f"{name} to {shape}"))

    def _origin(self, what: str) -> Mix | None:
        return self._report((), what, "use nn.Flatten", False)


def tags_of(x: Tensor) -> Tags:
    """Return the tags of the dims of ``x``."""
    found: Tags | None = getattr(x, "_workbench_tags", None)
    return found if found is not None and len(found) == x.dim() else ("",) * x.dim()


def traced(x: Tensor) -> Traced:
    """Return what is known of ``x``, with its tags as labels."""
    return Traced(tuple(x.shape), as_labels(tags_of(x), x.shape), x.element_size(), x.requires_grad)


def set_tags(tensor: Tensor, tags: Tags) -> None:
    """Tag ``tensor``; a tensor of which nobody has to know anything carries no tags."""
    if any(tags):
        tensor._workbench_tags = tags  # type: ignore[attr-defined]
    elif hasattr(tensor, "_workbench_tags"):
        del tensor._workbench_tags


Rule = Callable[[Operation], "Sequence[Sequence[Tag]] | Sequence[Tag] | None"]
RULES: dict[str, Rule] = {}
EVEN_SAFE: set[str] = set()
"""Operations that leave a dim of equal entries one: they do not care how long it is."""


def rule(*names: str, even: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of the operations ``names``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        if even:
            EVEN_SAFE.update(names)
        return function

    return register


def everything(op: Operation) -> list[list[Tag]]:
    """Nobody knows the operation: it may mix all that it is given."""
    if hit := labels_in(tag for tensor in op.tensors for tag in tags_of(tensor)):
        op.mix(hit)
    return nothing_left(op)


def nothing_left(op: Operation) -> list[list[Tag]]:
    """Return the tags of results after everything has been mixed."""
    tags = [tag for tensor in op.tensors for tag in tags_of(tensor)]
    gone = lost_in(tags) | set(labels_in(tags))
    rest: Tag = Lost(gone) if gone else ""
    own = [lost(tag) or rest for tag in tags_of(op.first)] if op.tensors else []
    own = [rest if isinstance(tag, Even) else tag for tag in own]
    return [own if r.dim() == len(own) else [rest] * r.dim() for r in op.results]


def report_meeting(
    op: Operation, tensors: Sequence[Tensor], stretched: Sequence[Label], apart: Sequence[Label]
) -> None:
    """Report labels of dims of one row that were stretched, and of dims cut here and not there."""
    arrays = f"{op.said} of arrays {' and '.join(str(tuple(t.shape)) for t in tensors if t.dim())}"
    if stretched:
        op.mix(stretched, f"{arrays}: the dim of size 1 is on one rank only")
    if apart:
        op.mix(
            apart,
            f"{arrays}: what is cut in one is whole in another, or cut along another dim",
            advice="give the model arrays that go with its input as one more input, of as many "
            "dims",
        )
