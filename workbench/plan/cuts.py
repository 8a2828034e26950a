"""How arrays and labels are cut, and which parameters travel together.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from workbench.traced import Flat
from workbench.windows import Run


@dataclass(frozen=True, slots=True)
class Cut:
    """How one array is cut: ``dim`` over ``axis``; an array without cuts is whole on every rank.

    ``part`` numbers the dims of the grid that an axis may be laid out on, as in ``spatial=2x2``.
    ``units`` is how many pieces of the dim go as a whole, such as heads; 0 if all do.
    ``flat`` is set where the dim was flattened out of several of which one is cut: a rank then owns
    no single range of it.
    """

    dim: int
    axis: str
    part: int = 0
    flat: Flat | None = None
    units: int = 0


@dataclass(frozen=True, slots=True)
class CutLabel:
    """Every dim with this label is cut over ``axis``, of whose grid it is dim ``part``.

    ``units`` is how many pieces of the dim go as a whole; 0 if all do.
    """

    label: str
    axis: str
    part: int = 0
    units: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Parameters, by name, whose gradients are added up together over the ranks along ``axes``.

    ``places`` are those on the pipeline whose ranks have them, if not all do.
    """

    names: tuple[str, ...]
    axes: tuple[str, ...]
    places: tuple[int, ...] = ()


def runs_of(flat: Flat, ranges: Sequence[Run]) -> tuple[Run, ...]:
    """Return the positions, in a dim that was made of several, of a range of each of those."""
    sizes = [size for _, size in flat.parts]
    if flat.beside:
        edges = accumulate(sizes[:-1], initial=0)
        runs = [(at + start, at + stop) for at, (start, stop) in zip(edges, ranges, strict=True)]
        return _longer(runs)
    runs = [(0, 1)]
    for size, (start, stop) in zip(sizes, ranges, strict=True):
        finer: list[Run] = []
        for first, last in runs:
            for block in range(first, last):
                begin, end = block * size + start, block * size + stop
                if finer and finer[-1][1] == begin:
                    begin = finer.pop()[0]
                finer.append((begin, end))
        runs = finer
    return _longer(runs)


def _longer(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the ranges that have positions, or one that has none."""
    return tuple((start, stop) for start, stop in runs if start < stop) or ((0, 0),)
