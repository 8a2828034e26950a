"""Ranks on named axes, and the one rule by which everything is cut.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

AXES = ("data", "sharded", "pipeline", "tensor", "channel", "spatial")
"""Every axis name, slowest varying first: the axis that talks most has neighbouring ranks."""


def balanced(size: int, parts: int, index: int) -> tuple[int, int]:
    """Return the half-open range ``[start, stop)`` of ``size`` items that part ``index`` owns.

    Sizes differ by at most one and the larger parts come first, so 10 items in 4 parts
    are 3, 3, 2, 2. Parts may be empty. Nothing else in the workbench decides ownership:
    the same function gives the chunks of a dask array and the slice of a rank.
    """
    if size < 0 or parts < 1 or not 0 <= index < parts:
        raise ValueError(f"no part {index} of {size} items in {parts} parts")
    small, larger = divmod(size, parts)
    start = index * small + min(index, larger)
    return start, start + small + (index < larger)


def shares(size: int, parts: int) -> tuple[int, ...]:
    """Return the sizes of all parts of the balanced split: ``shares(10, 4) == (3, 3, 2, 2)``."""
    return tuple(stop - start for start, stop in (balanced(size, parts, i) for i in range(parts)))


@dataclass(frozen=True, slots=True)
class Mesh:
    """Ranks on named axes: ``Mesh((("data", 2), ("tensor", 3)))`` has 6 ranks.

    The last axis varies fastest with the rank number. An axis that is not named has degree 1,
    so the serial run is ``Mesh()`` and no special case.
    """

    axes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if len(set(names)) != len(names) or not set(names) <= set(AXES):
            raise ValueError(f"axes must be different names out of {', '.join(AXES)}; got {names}")
        if any(degree < 1 for _, degree in self.axes):
            raise ValueError(f"degrees must be 1 or more; got {self.axes}")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(degree for _, degree in self.axes)

    def degree(self, axis: str) -> int:
        """Return the number of ranks along ``axis``; 1 if the axis is not used."""
        return dict(self.axes).get(axis, 1)

    def coordinates(self, rank: int) -> Mapping[str, int]:
        """Return the index of ``rank`` along each axis."""
        if not 0 <= rank < self.size:
            raise ValueError(f"no rank {rank} on a mesh of {self.size}")
        found = {}
        for name, degree in reversed(self.axes):
            rank, found[name] = divmod(rank, degree)
        return dict(reversed(found.items()))

    def group(self, rank: int, axis: str) -> tuple[int, ...]:
        """Return the ranks that differ from ``rank`` only along ``axis``, with itself, in order."""
        here = {k: v for k, v in self.coordinates(rank).items() if k != axis}
        return tuple(
            other
            for other in range(self.size)
            if {k: v for k, v in self.coordinates(other).items() if k != axis} == here
        )

    def with_axis(self, axis: str, degree: int) -> Mesh:
        """Return this mesh with one more axis, in the order of :data:`AXES`."""
        return Mesh(tuple(sorted((*self.axes, (axis, degree)), key=lambda a: AXES.index(a[0]))))
