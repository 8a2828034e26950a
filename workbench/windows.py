"""The one rule of windowed layers: which rows of its input a range of output rows needs, and whose.

A windowed layer (convolution, transposed convolution, pooling, padding, resampling) is driven by
its output. The rank that owns outputs ``[o0, o1)`` along a dim needs inputs ``[o0 s - p,
(o1 - 1) s - p + d (k - 1) + 1)``; that range is clipped to the array, what lies outside is padding,
and what lies in other ranks' shares is fetched from them. One piece of code covers strides,
dilation, even kernels, uneven and empty shares, and halos that reach past the neighbour.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

from workbench.mesh import balanced

Padding = Literal["zeros", "reflect", "replicate", "circular"]
Run = tuple[int, int]
"""Half-open range of rows."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one rank needs along one dim.

    Attributes
    ----------
    start, stop:
        The range of the padded array; row 0 is the array's first, padding before it is negative.
    runs:
        The rows of the array itself that are needed: sorted, disjoint, possibly none.
    before, after:
        Rows of the range that are fill (zeros, or minus infinity for a maximum), at either end.
    order:
        For padding that copies rows: for each row of the range its position in the concatenated
        ``runs``. None where the range is simply fill, runs, fill.
    """

    start: int
    stop: int
    runs: tuple[Run, ...]
    before: int = 0
    after: int = 0
    order: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Number of rows of the array that are needed."""
        return sum(stop - start for start, stop in self.runs)


@dataclass(frozen=True, slots=True)
class Window:
    """How a layer's outputs depend on its inputs along one dim.

    Attributes
    ----------
    size, outputs:
        Rows of the whole input and of the whole output.
    stride, padding, span:
        Output row ``o`` sees the input rows ``o stride - padding`` up to ``span`` rows further,
        where ``span`` is ``dilation (kernel - 1) + 1``. A negative padding crops.
    transposed:
        The other way round: input row ``i`` adds to ``span`` outputs from ``i stride - padding``
        on, as in a transposed convolution. Its padding is cut off the output, not added.
    mode:
        What lies outside the array; "zeros" stands for any constant fill.
    table:
        For what no formula covers (adaptive pooling, resampling): the inputs ``[start, stop)`` of
        each output row, both non-decreasing and inside the array.
    """

    size: int
    outputs: int
    stride: int = 1
    padding: int = 0
    span: int = 1
    transposed: bool = False
    mode: Padding = "zeros"
    table: tuple[Run, ...] = ()

    def needs(self, start: int, stop: int) -> Run:
        """Return the input range that outputs ``[start, stop)`` need; it may reach outside."""
        if stop <= start:
            return (0, 0)
        if self.table:
            return self.table[start][0], self.table[stop - 1][1]
        if self.transposed:
            first = -(-(start + self.padding - self.span + 1) // self.stride)
            last = (stop - 1 + self.padding) // self.stride
            first, last = max(0, first), min(self.size - 1, last)
            return (first, last + 1) if first <= last else (0, 0)
        first = start * self.stride - self.padding
        return first, (stop - 1) * self.stride - self.padding + self.span

    def rows(self, start: int, stop: int) -> Rows:
        """Return what a rank that owns outputs ``[start, stop)`` needs."""
        return _rows(self, start, stop)

    def share(self, parts: int, index: int) -> Rows:
        """Return what part ``index`` of the balanced split of the outputs needs."""
        return self.rows(*balanced(self.outputs, parts, index))


@lru_cache(maxsize=4096)
def _rows(window: Window, start: int, stop: int) -> Rows:
    first, last = window.needs(start, stop)
    if last <= first:
        return Rows(0, 0, ())
    size = window.size
    if window.mode == "zeros":
        low, high = min(max(first, 0), last), max(min(last, size), first)
        if low >= high:  # nothing but padding
            return Rows(first, last, (), before=last - first)
        return Rows(first, last, ((low, high),), before=low - first, after=last - high)
    source = [_source(row, size, window.mode) for row in range(first, last)]
    runs = _runs(sorted(set(source)))
    position, count = {}, 0
    for a, b in runs:
        for row in range(a, b):
            position[row] = count
            count += 1
    order = tuple(position[row] for row in source)
    return Rows(first, last, runs, order=None if order == tuple(range(count)) else order)


def _source(row: int, size: int, mode: Padding) -> int:
    """Return the array's row that a row of the padded array copies."""
    if 0 <= row < size:
        return row
    if mode == "circular":
        return row % size
    if mode == "replicate":
        return 0 if row < 0 else size - 1
    return -row if row < 0 else 2 * (size - 1) - row


def _runs(rows: Sequence[int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for row in rows:
        if runs and runs[-1][1] == row:
            runs[-1] = (runs[-1][0], row + 1)
        else:
            runs.append((row, row + 1))
    return tuple(runs)


def owned_of(rows: Rows, size: int, parts: int, owner: int) -> tuple[Run, ...]:
    """Return the runs of ``rows`` that lie in the share of ``owner`` of an array of ``size``."""
    start, stop = balanced(size, parts, owner)
    cut = ((max(a, start), min(b, stop)) for a, b in rows.runs)
    return tuple((a, b) for a, b in cut if a < b)


@dataclass(frozen=True, slots=True)
class Halo:
    """Who needs what of whom for one call of a windowed layer, on a grid of ranks.

    ``windows`` are those of the dims that are cut, and ``grid`` says over how many ranks each;
    ranks are numbered along the grid with the last dim fastest. Each pair of ranks exchanges at
    most one message, corners included: the box that one needs, met with the box that the other
    owns.
    """

    windows: tuple[Window, ...]
    grid: tuple[int, ...]

    def place(self, index: int) -> tuple[int, ...]:
        """Return the place of rank ``index`` along each dim of the grid."""
        found = []
        for parts in reversed(self.grid):
            index, where = divmod(index, parts)
            found.append(where)
        return tuple(reversed(found))

    def needs(self, index: int) -> tuple[Rows, ...]:
        """Return what rank ``index`` needs along each dim that is cut."""
        return tuple(
            window.share(parts, where)
            for window, parts, where in zip(self.windows, self.grid, self.place(index), strict=True)
        )

    def message(self, owner: int, reader: int) -> tuple[tuple[Run, ...], ...]:
        """Return the rows, along each dim, of what ``reader`` needs and ``owner`` owns.

        The message is the product of the dims; it is empty if one of them is.
        """
        return _message(self, owner, reader)

    def rows_sent(self, owner: int, reader: int) -> int:
        """Return the number of cells of the cut dims in the message; 0 if there is none."""
        return math.prod(
            sum(stop - start for start, stop in runs) for runs in self.message(owner, reader)
        )

    def sent(self, owner: int) -> int:
        """Return the cells of the cut dims that ``owner`` sends forward to all others."""
        return sum(self.rows_sent(owner, r) for r in range(self.size) if r != owner)

    def received(self, reader: int) -> int:
        """Return the cells that ``reader`` receives forward, and sends back in backward."""
        return sum(self.rows_sent(o, reader) for o in range(self.size) if o != reader)

    @property
    def size(self) -> int:
        """Number of ranks on the grid."""
        return math.prod(self.grid)

    def owned(self, index: int) -> tuple[Run, ...]:
        """Return the input rows that rank ``index`` owns along each dim."""
        return tuple(
            balanced(window.size, parts, where)
            for window, parts, where in zip(self.windows, self.grid, self.place(index), strict=True)
        )

    def readers(self, owner: int) -> tuple[int, ...]:
        """Return the other ranks that need something of ``owner``."""
        return tuple(r for r in range(self.size) if r != owner and self.rows_sent(owner, r))

    def owners(self, reader: int) -> tuple[int, ...]:
        """Return the other ranks of which ``reader`` needs something."""
        return tuple(o for o in range(self.size) if o != reader and self.rows_sent(o, reader))


@lru_cache(maxsize=65536)
def _message(halo: Halo, owner: int, reader: int) -> tuple[tuple[Run, ...], ...]:
    needs, where = halo.needs(reader), halo.place(owner)
    return tuple(
        owned_of(rows, window.size, parts, place)
        for rows, window, parts, place in zip(needs, halo.windows, halo.grid, where, strict=True)
    )


def cells(runs: Sequence[tuple[Run, ...]]) -> list[tuple[Run, ...]]:
    """Return the boxes, one run per dim, that make up a message, in the order they travel."""
    return [tuple(box) for box in product(*runs)]
