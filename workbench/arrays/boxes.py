"""Boxes: one range per dim of an array, and which chunks they touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, product
from math import prod

from workbench.windows import Run

Box = tuple[Run, ...]
"""One half-open range per dim."""

Chunks = tuple[tuple[int, ...], ...]
"""Sizes of the chunks of an array, by dim, as dask has them."""

_WASTE = 1.5
"""Two boxes become one as long as that holds no more than this times what the two hold."""


def whole(shape: Sequence[int]) -> Box:
    """Return the box that holds a whole array."""
    return tuple((0, size) for size in shape)


def shape_of(box: Box) -> tuple[int, ...]:
    """Return the sizes of a box."""
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    """Return the number of cells."""
    return prod(shape_of(box))


def hull(one: Box, other: Box) -> Box:
    """Return the smallest box that holds both."""
    pairs = zip(one, other, strict=True)
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in pairs)


def holds(outer: Box, inner: Box) -> bool:
    """Return whether ``inner`` lies in ``outer``."""
    pairs = zip(outer, inner, strict=True)
    return all(a <= c and d <= b for (a, b), (c, d) in pairs)


def meet(one: Box, other: Box) -> Box | None:
    """Return what two boxes have in common; None if that is nothing."""
    pairs = zip(one, other, strict=True)
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in pairs)
    return found if all(start < stop for start, stop in found) else None


def spread(shape: Sequence[int], box: Box, result: Sequence[int]) -> Box:
    """Return the box of an array of ``shape`` that spreads out to ``box`` of the result."""
    own = box[len(box) - len(shape) :]
    sizes = result[len(box) - len(shape) :]
    return tuple(
        (0, 1) if size == 1 and size != wide else run
        for size, wide, run in zip(shape, sizes, own, strict=True)
    )


def within(box: Box, outer: Box) -> tuple[slice, ...]:
    """Return where ``box`` lies in an array that holds ``outer``."""
    pairs = zip(box, outer, strict=True)
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in pairs)


def add_box(boxes: list[Box], box: Box) -> None:
    """Add ``box`` to some, in place; those that lie close to it become one with it.

    Far ones stay apart, such as the two ends of a dim that circular padding asks for.
    """
    merged = True
    while merged:
        merged = False
        for number, other in enumerate(boxes):
            both = hull(box, other)
            if volume(both) <= _WASTE * (volume(box) + volume(other)):
                del boxes[number]
                box, merged = both, True
                break
    boxes.append(box)


def holder(boxes: Iterable[Box], box: Box) -> Box:
    """Return the one of ``boxes`` that holds ``box``."""
    return next(outer for outer in boxes if holds(outer, box))


def touched(chunks: Chunks, box: Box) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Yield the chunks that a box touches: their place, and the box that each of them covers."""
    by_dim = []
    for sizes, (start, stop) in zip(chunks, box, strict=True):
        ends = list(accumulate(sizes))
        found = [
            (number, (end - size, end))
            for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
            if end > start and end - size < stop
        ]
        by_dim.append(found)
    for combination in product(*by_dim):
        yield tuple(number for number, _ in combination), tuple(run for _, run in combination)


def boxes_of(chunks: Chunks) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Yield all chunks: their place, and the box that each of them covers."""
    by_dim = []
    for sizes in chunks:
        ends = list(accumulate(sizes))
        runs = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        by_dim.append(list(enumerate(runs)))
    for combination in product(*by_dim):
        yield tuple(number for number, _ in combination), tuple(run for _, run in combination)


def in_proportion(sizes: Sequence[int], size: int) -> tuple[int, ...]:
    """Return chunks for a dim of another ``size``, cut in the same proportions; none is empty."""
    whole_size = sum(sizes)
    if whole_size == size:
        return tuple(sizes)
    if whole_size == 0 or size == 0:
        return (size,)
    ends = dict.fromkeys(round(end * size / whole_size) for end in accumulate(sizes))
    cuts = [0, *(end for end in ends if end > 0)]
    return tuple(b - a for a, b in pairwise(cuts))
