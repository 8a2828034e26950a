"""Where the dims of an array go when it is viewed in another shape."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import gcd, prod

from workbench.traced import Label
from workbench.tracking.tags import (
    EVEN,
    Even,
    Lost,
    Merged,
    Tag,
    labels_in,
    labels_of,
    lost,
    lost_in,
)

Parts = tuple[tuple[Tag, int], ...]


def regroup(
    old: Sequence[tuple[Tag, int]],
    new: Sequence[int],
    merged: Callable[[Parts], Merged],
    split: Callable[[Tag, int, int], bool] = lambda tag, count, size: False,
) -> tuple[list[Tag], tuple[Label, ...]]:
    """Return the tags of a view of shape ``new`` on dims ``old``, and labels that it tears apart.

    Dims are read in order, the last one fastest, as ``Tensor.view`` does. Dims that were merged by
    an earlier view come apart again. A dim of size 1 goes with its neighbour unless it finds a
    place of its own, since on shares it may be empty. Features may be taken apart into pieces, of
    which ``split`` is told: then the pieces carry their label.
    """
    if [size for _, size in old] == list(new):
        return [tag for tag, _ in old], ()
    if prod(new) == 0:
        return _give_up(old, new)
    atoms = deque(part for tag, size in old for part in _atoms(tag, size))
    dims: list[list[tuple[Tag, int]]] = []
    torn: list[Label] = []
    for size in new:
        taken: list[tuple[Tag, int]] = []
        if size == 1 and atoms and atoms[0][1] == 1:
            taken.append(atoms.popleft())
        missing = size
        while missing > 1:
            tag, rows = atoms.popleft()
            if missing % rows:
                step = gcd(rows, missing)
                if step == 1:
                    return _give_up(old, new)
                if split(tag, step, rows):
                    atoms.appendleft(("", rows // step))
                else:
                    torn += labels_of(tag)
                    tag = lost(tag)
                    atoms.appendleft((tag, rows // step))
                rows = step
            taken.append((tag, rows))
            missing //= rows
        dims.append(taken)
    if dims:
        dims[-1] += atoms
    else:
        torn += labels_in(tag for tag, _ in atoms)
    return [_together(taken, merged, split) for taken in dims], tuple(dict.fromkeys(torn))


def _atoms(tag: Tag, size: int) -> Parts:
    return tag.parts if isinstance(tag, Merged) and not tag.beside else ((tag, size),)


def _together(
    taken: Sequence[tuple[Tag, int]],
    merged: Callable[[Parts], Merged],
    split: Callable[[Tag, int, int], bool],
) -> Tag:
    """Return the tag of one dim that is made of the dims ``taken``."""
    parts = tuple((tag, size) for tag, size in taken if size > 1 or labels_of(tag))
    if not parts:
        return taken[0][0] if taken else ""
    if len(parts) == 1:
        return parts[0][0]
    tags = [tag for tag, _ in parts]
    # Entries that are all equal are what was expanded: each of the pieces, so many times.
    alike = all(not tag or isinstance(tag, Even) for tag in tags[1:])
    if alike and split(tags[0], parts[0][1], 0):
        return tags[0]
    if labels_in(tags):
        return merged(parts)
    if gone := lost_in(tags):
        return Lost(gone)
    return EVEN if all(isinstance(tag, Even) for tag in tags) else ""


def _give_up(
    old: Sequence[tuple[Tag, int]], new: Sequence[int]
) -> tuple[list[Tag], tuple[Label, ...]]:
    tags = [tag for tag, _ in old]
    torn = labels_in(tags)
    gone = lost_in(tags) | set(torn)
    return [Lost(gone) if gone else ""] * len(new), torn
