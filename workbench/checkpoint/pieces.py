"""Which entries of a whole array a rank has, and where in a file they are for another rank.

Pure. A *piece* is what is held of an array: for every dim the ranges that are held, in ascending
order. One range is the rule. There are several where a dim was flattened out of others and one of
those is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from workbench.mesh import Mesh
from workbench.plan import Cut, Plan, assemble, runs_of
from workbench.windows import Run

Runs = tuple[Run, ...]
Piece = tuple[Runs, ...]
Copy = tuple[int, int, int]
"""Where a range begins in what is there, where in what is wanted, and how long it is."""


def size(runs: Runs) -> int:
    """Return how many positions there are in ranges."""
    return sum(stop - start for start, stop in runs)


def shape_of(piece: Piece) -> tuple[int, ...]:
    """Return the shape of an array that holds a piece."""
    return tuple(size(runs) for runs in piece)


def whole(shape: Sequence[int]) -> Piece:
    """Return the piece that is all of an array."""
    return tuple(((0, length),) for length in shape)


def held(plan: Plan, kept: str, shape: Sequence[int], rank: int) -> Piece:
    """Return which piece of a kept array of ``shape``, when whole, ``rank`` has."""
    piece = list(whole(shape))
    for cut in plan.kept_cuts(kept, len(shape)):
        here = shape_of(tuple(piece))
        if cut.flat is None:
            within: Runs = (plan.share(here, [cut], rank)[cut.dim],)
        else:
            ranges = [plan.share_of_label(label, length, rank) for label, length in cut.flat.parts]
            within = runs_of(cut.flat, ranges)
        piece[cut.dim] = tuple(
            run for start, stop in within for run in _narrow(piece[cut.dim], start, stop)
        )
    return tuple(piece)


def common(there: Piece, wanted: Piece) -> tuple[tuple[Copy, ...], ...] | None:
    """Return for every dim what of ``wanted`` is ``there``; None if nothing is."""
    found = []
    for have, want in zip(there, wanted, strict=True):
        copies = tuple(_overlaps(have, want))
        if not copies:
            return None
        found.append(copies)
    return tuple(found)


def volume(copies: tuple[tuple[Copy, ...], ...]) -> int:
    """Return how many entries are copied."""
    return prod(sum(length for _, _, length in dim) for dim in copies)


def whole_shape(
    shapes: dict[int, tuple[int, ...]], cuts: Sequence[Cut], mesh: Mesh
) -> tuple[int, ...]:
    """Return the shape of an array whose shares, by rank, have these shapes."""
    shares = {rank: _Extent(shape) for rank, shape in shapes.items()}
    joined: _Extent = assemble(shares, cuts, mesh, _join)
    return joined.shape


class _Extent:
    """An array of which only the shape matters."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, index: tuple[slice, ...]) -> _Extent:
        taken = (len(range(size)[each]) for size, each in zip(self.shape, index, strict=False))
        return _Extent((*taken, *self.shape[len(index) :]))

    def reshape(self, shape: tuple[int, ...]) -> _Extent:
        return _Extent(shape)


def _join(parts: Sequence[_Extent], dim: int) -> _Extent:
    first = parts[0].shape
    together = sum(part.shape[dim] for part in parts)
    return _Extent((*first[:dim], together, *first[dim + 1 :]))


def _narrow(runs: Runs, start: int, stop: int) -> list[Run]:
    """Return the positions from ``start`` to ``stop``, counted through ``runs``."""
    if start == stop:
        return [(0, 0)]
    found = []
    offsets = accumulate((last - first for first, last in runs), initial=0)
    for (first, last), offset in zip(runs, offsets, strict=False):
        begin, end = max(first, first + start - offset), min(last, first + stop - offset)
        if begin < end:
            found.append((begin, end))
    return found


def _overlaps(have: Runs, want: Runs) -> list[Copy]:
    """Return where the positions of two lists of ranges are the same."""
    found = []
    i = j = here = there = 0
    while i < len(have) and j < len(want):
        begin, end = max(have[i][0], want[j][0]), min(have[i][1], want[j][1])
        if begin < end:
            found.append((here + begin - have[i][0], there + begin - want[j][0], end - begin))
        if have[i][1] <= want[j][1]:
            here += have[i][1] - have[i][0]
            i += 1
        else:
            there += want[j][1] - want[j][0]
            j += 1
    return found
