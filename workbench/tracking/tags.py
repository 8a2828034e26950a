"""Tags: what is known of one dim of one array while a pass is watched.

A tag is a label, "" where the dim is whole and nobody has to know, or one of three kinds that are
of use only during the pass and end where an array enters a layer or leaves the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import gcd

from workbench.traced import SAMPLES, Flat, Label, Mix


@dataclass(frozen=True, slots=True)
class Even:
    """All entries along the dim are equal, as in ``torch.zeros`` or after ``expand``.

    Such a dim fits any other of its size, also on shares, since nothing depends on the position.
    """


@dataclass(frozen=True, slots=True)
class Lost:
    """The dim had ``labels``, or might have, and a mix of them has been reported already."""

    labels: frozenset[Label]


@dataclass(frozen=True, slots=True)
class Merged:
    """A view has merged several dims, some of them labelled.

    Harmless as long as every row is treated alike, or until the dim is taken apart again, as in
    the matrix product of an array of many dims. ``origin`` is the mix to report where it is not.
    With ``beside`` it is no view: the dim has parts of several sizes side by side.
    """

    parts: tuple[tuple[Tag, int], ...]
    origin: Mix | None = field(default=None, compare=False)
    beside: bool = False


Tag = Label | Even | Lost | Merged
Tags = tuple[Tag, ...]
EVEN = Even()


def fused(label: str, sizes: Sequence[int]) -> Tag:
    """Return the tag of features that are things of ``sizes`` side by side, each a layer's.

    The label then counts the features of each of them.
    """
    if len(sizes) < 2:
        return label
    if len(set(sizes)) == 1:
        return Merged((("", len(sizes)), (label, sizes[0])))
    return Merged(tuple((label, size) for size in sizes), beside=True)


def is_fused(tag: Tag) -> bool:
    """Return whether a dim has several things side by side, of each of which there are features."""
    if not isinstance(tag, Merged) or tag.beside:
        return isinstance(tag, Merged)
    return (
        len(tag.parts) == 2
        and not tag.parts[0][0]
        and isinstance(tag.parts[1][0], str)
        and tag.parts[1][0].startswith("out:")
    )


def labels_of(tag: Tag) -> tuple[Label, ...]:
    """Return the labels that a dim carries, those of merged dims one by one."""
    if isinstance(tag, Merged):
        parts = tag.parts[:1] if tag.beside else tag.parts
        return tuple(label for part, _ in parts for label in labels_of(part))
    if isinstance(tag, Even | Lost) or not tag:
        return ()
    return (tag,)


def labels_in(tags: Iterable[Tag]) -> tuple[Label, ...]:
    """Return the labels of several dims, each once."""
    return tuple(dict.fromkeys(label for tag in tags for label in labels_of(tag)))


def lost_in(tags: Iterable[Tag]) -> frozenset[Label]:
    """Return the labels that several dims have lost."""
    return frozenset(label for tag in tags if isinstance(tag, Lost) for label in tag.labels)


def lost(tag: Tag) -> Tag:
    """Return the tag of a dim whose labels have been mixed."""
    labels = labels_of(tag)
    return Lost(frozenset(labels)) if labels else tag


def as_labels(tags: Tags, shape: Sequence[int]) -> tuple[Label, ...]:
    """Return tags as labels; dims that have none are whole.

    A dim that has lost one label keeps it here. That mix is known, so nobody cuts this label, and
    what comes after is watched as if the layer had been carried out on whole arrays.
    """
    found: list[Label] = [tag if isinstance(tag, str | Flat) else "" for tag in tags]
    for dim, tag in enumerate(tags):
        if isinstance(tag, Merged) and is_fused(tag):
            found[dim] = Flat(tuple((str(part), size) for part, size in tag.parts), tag.beside)
    for dim, tag in enumerate(tags):
        if isinstance(tag, Lost) and len(tag.labels) == 1 and shape[dim] > 1:
            (label,) = tag.labels
            alone = sum(label == other or label in lost_in((other,)) for other in tags) == 1
            found[dim] = label if alone else ""
    # Samples stay samples, whatever code does to them: nobody cuts them by this label.
    if tags and isinstance(tags[0], Lost) and SAMPLES in tags[0].labels:
        found[0] = SAMPLES
    return tuple(found)


class Names:
    """Which labels have turned out to count the same: the outputs of layers that are added up."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._order: dict[str, int] = {}
        self._units: dict[str, int] = {}
        self.splits: list[tuple[str, int, int]] = []
        self.parted: dict[str, int] = {}
        self.edges: dict[str, set[int]] = {}

    def part(self, tag: Tag, count: int, edges: Iterable[int]) -> None:
        """Note that code takes the features of a layer apart into ``count`` things of their own.

        ``edges`` are those of the parts, which may be of several sizes.
        """
        if isinstance(tag, str) and tag.startswith("out:"):
            self.edges.setdefault(tag, set()).update(edges)
            if count > 1:
                self.parted.setdefault(tag, count)

    def introduce(self, label: str) -> None:
        """Note that ``label`` exists: the earlier of two that are the same gives both its name."""
        self._order.setdefault(label, len(self._order))

    @property
    def introduced(self) -> tuple[str, ...]:
        """The names of all labels of features, each once."""
        return tuple(dict.fromkeys(self.find(label) for label in self._order))

    def split(self, tag: Tag, count: int, size: int = 0) -> bool:
        """Note that code takes features apart into ``count`` equal pieces, if ``tag`` is of some.

        Features are then cut between such pieces only; ``size`` is how many there were.
        """
        if not isinstance(tag, str) or not tag.startswith("out:"):
            return False
        name = self.find(tag)
        self._units[name] = gcd(self._units.get(name, count), count)
        if size:
            self.splits.append((name, size, count))
        return True

    @property
    def units(self) -> tuple[tuple[str, int], ...]:
        """How many pieces there are of the features that code takes apart, by label."""
        return tuple(self._units.items())

    def find(self, label: str) -> str:
        """Return the one name of all labels that count what ``label`` counts."""
        while (parent := self._parent.get(label, label)) != label:
            label = parent
        return label

    def canonical(self, label: Label) -> Label:
        """Return ``label`` with the names that all agree on, also inside a flattened dim."""
        if isinstance(label, Flat):
            parts = tuple((self.find(name), size) for name, size in label.parts)
            return Flat(parts, label.beside)
        return self.find(label)

    def all(self, labels: Iterable[Label]) -> tuple[Label, ...]:
        """Return the canonical ``labels``, each once."""
        return tuple(dict.fromkeys(self.canonical(label) for label in labels))

    def twice(self, tags: Tags) -> tuple[Label, ...]:
        """Return labels that several dims of one array carry: there all positions meet all."""
        found = [self.canonical(label) for tag in tags for label in labels_of(tag)]
        return tuple(dict.fromkeys(label for label in found if found.count(label) > 1))

    def same(self, a: str, b: str) -> bool:
        """Return whether two labels count the same, and let outputs of two layers do from now."""
        a, b = self.find(a), self.find(b)
        if a != b and a.startswith("out:") and b.startswith("out:"):
            last = len(self._order)
            if self._order.get(b, last) < self._order.get(a, last):
                a, b = b, a
            self._parent[b] = a
            if b in self._units:
                self.split(a, self._units.pop(b))
            return True
        return a == b

    def meet(self, met: Sequence[Tag], size: int) -> tuple[Tag, tuple[Label, ...]]:
        """Return the tag of a dim in which dims of ``size`` meet position by position.

        The labels returned with it cannot: one dim is cut and the other is whole, or cut elsewhere.
        """
        found: Tag = EVEN
        mixed: tuple[Label, ...] = ()
        for tag in met:
            found, more = self._join(found, tag, size)
            mixed += more
        return found, mixed

    def _join(self, a: Tag, b: Tag, size: int) -> tuple[Tag, tuple[Label, ...]]:
        if isinstance(a, Even) or a == b:
            return b, ()
        if isinstance(b, Even):
            return a, ()
        if isinstance(a, Lost) or isinstance(b, Lost):
            known = frozenset(self.all(lost_in((a, b))))
            mixed = tuple(label for label in self.all(labels_in((a, b))) if label not in known)
            return Lost(known | set(mixed)), mixed
        if size == 1 and (not a or not b):
            return a or b, ()
        if isinstance(a, str) and isinstance(b, str) and a and b and self.same(a, b):
            return a, ()
        if isinstance(a, Flat) and isinstance(b, Flat) and self._alike(a, b):
            return a, ()
        if isinstance(a, Merged) and isinstance(b, Merged) and self._alike(a, b):
            return a, ()
        mixed = labels_in((a, b))
        return Lost(frozenset(mixed)), mixed

    def _alike(self, a: Merged | Flat, b: Merged | Flat) -> bool:
        """Return whether two merged dims are made of the same parts."""
        sizes = [[size for _, size in each.parts] for each in (a, b)]
        return (
            a.beside == b.beside
            and sizes[0] == sizes[1]
            and not any(
                self._join(one, other, size)[1]
                for (one, size), (other, _) in zip(a.parts, b.parts, strict=True)
            )
        )
