"""Ranks on named axes, and the one rule by which everything is cut.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

AXES = ("data", "sharded", "pipeline", "tensor", "channel", "spatial")
"""The axes that come along, slowest varying first: the one that talks most has neighbouring ranks.

An axis of any other name belongs to a strategy of a user's own, and varies faster than these.
"""

BATCH_AXES = ("data", "sharded")
"""Axes along which ranks take different samples."""


def cuts_features(axis: str) -> bool:
    """Return whether ranks along ``axis`` have different features of the same arrays.

    ``tensor`` and ``channel`` do, and so does every axis of a strategy of a user's own.
    """
    return axis not in (*BATCH_AXES, "pipeline", "spatial")


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


def balanced_units(size: int, parts: int, index: int, units: int = 0) -> tuple[int, int]:
    """Return the range that part ``index`` owns where only whole units are given away.

    A dim of ``size`` items has ``units`` equal units, such as heads; 0 stands for single items. So
    12 features of 3 heads in 2 parts are 8 and 4.
    """
    units = units or size
    each = size // units if units else 0
    start, stop = balanced(units, parts, index)
    return start * each, stop * each


def shares(size: int, parts: int, units: int = 0) -> tuple[int, ...]:
    """Return the sizes of all parts of the balanced split: ``shares(10, 4) == (3, 3, 2, 2)``."""
    every = (balanced_units(size, parts, index, units) for index in range(parts))
    return tuple(stop - start for start, stop in every)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Ranks on named axes: ``Mesh((("data", 2), ("tensor", 3)))`` has 6 ranks.

    The last axis varies fastest with the rank number. An axis that is not named has degree 1,
    so the serial run is ``Mesh()`` and no special case. The ranks of the spatial axis may be laid
    out on a grid, ``grid == (2, 3)`` for ``spatial=2x3``, of which the last dim varies fastest.
    """

    axes: tuple[tuple[str, int], ...] = ()
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.grid and math.prod(self.grid) != self.degree("spatial"):
            raise ValueError(f"a grid of {self.grid} has not {self.degree('spatial')} ranks")
        names = [name for name, _ in self.axes]
        if len(set(names)) != len(names) or not all(map(str.isidentifier, names)):
            raise ValueError(
                f"axes must be different names, such as {', '.join(AXES)}; got {names}"
            )
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

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """Return the ranks that differ from ``rank`` only along ``axes``, with itself, in order."""
        here = {k: v for k, v in self.coordinates(rank).items() if k not in axes}
        return tuple(
            other
            for other in range(self.size)
            if {k: v for k, v in self.coordinates(other).items() if k not in axes} == here
        )

    def parts(self, axis: str, part: int = 0) -> int:
        """Return into how many shares ``axis`` cuts a dim: dim ``part`` of its grid, if any.

        What is cut over ``data`` is the batch, which all of :data:`BATCH_AXES` cut together.
        """
        if axis == "data":
            return self.replicas
        if axis == "spatial" and self.grid:
            return self.grid[part]
        return self.degree(axis) if part == 0 else 1

    def place(self, rank: int, axis: str, part: int = 0) -> int:
        """Return which of those shares ``rank`` has."""
        if axis == "data":
            return self.replica(rank)
        index = self.coordinates(rank).get(axis, 0)
        if axis == "spatial" and self.grid:
            return index // math.prod(self.grid[part + 1 :]) % self.grid[part]
        return index if part == 0 else 0

    @property
    def replicas(self) -> int:
        """Number of shares that a batch is cut into."""
        return math.prod(self.degree(axis) for axis in BATCH_AXES)

    def replica(self, rank: int) -> int:
        """Return which share of every batch ``rank`` takes."""
        where, index = self.coordinates(rank), 0
        for axis, degree in self.axes:
            if axis in BATCH_AXES:
                index = index * degree + where[axis]
        return index

    def stream(self, rank: int) -> int:
        """Return which stream of random numbers the code that runs on ``rank`` draws from.

        Ranks that compute on the same samples with the same layers draw the same. Others must not:
        replicas have other samples, stages of a pipeline other layers.
        """
        return self.replica(rank) + self.replicas * self.place(rank, "pipeline")

    @property
    def feature_axes(self) -> tuple[str, ...]:
        """The axes along which ranks have different features of the same arrays."""
        return tuple(axis for axis, degree in self.axes if degree > 1 and cuts_features(axis))

    def with_axis(self, axis: str, degree: int, grid: tuple[int, ...] = ()) -> Mesh:
        """Return this mesh with one more axis, in the order of :data:`AXES`, others behind."""
        axes = sorted(
            (*self.axes, (axis, degree)),
            key=lambda a: AXES.index(a[0]) if a[0] in AXES else len(AXES),
        )
        return Mesh(tuple(axes), grid or self.grid)

    def with_degree(self, axis: str, degree: int) -> Mesh:
        """Return this mesh with so many ranks along ``axis``, in a row; without the axis for 1."""
        others = tuple(each for each in self.axes if each[0] != axis)
        left = Mesh(others, () if axis == "spatial" else self.grid)
        return left.with_axis(axis, degree) if degree > 1 else left

    def along(self, *axes: str) -> Mesh:
        """Return this mesh with ``axes`` only."""
        grid = self.grid if "spatial" in axes else ()
        return Mesh(tuple(each for each in self.axes if each[0] in axes), grid)

    def __str__(self) -> str:
        """Return the strategy as it is written: ``"data=2,spatial=2x2"``, or ``"serial"``."""
        used = [(axis, str(degree)) for axis, degree in self.axes if degree > 1]
        if len(self.grid) > 1:
            grid = "x".join(map(str, self.grid))
            used = [(a, grid if a == "spatial" else d) for a, d in used]
        return ",".join(f"{axis}={degree}" for axis, degree in used) or "serial"
