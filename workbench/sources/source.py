"""A source of rows, and the region of it that one rank needs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """An array that lies in files: the client knows its shape, who needs rows reads them.

    Attributes
    ----------
    shape, dtype:
        As dask arrays have them; dim 0 counts the rows.
    together:
        Rows that are best read at once: those of a compressed chunk. Reads begin at its multiples.
    """

    shape: tuple[int, ...]
    dtype: str
    together: int

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        raise NotImplementedError

    def mapped(self) -> NDArray[Any] | None:
        """Return the whole array as a map of its file, which costs no memory; None if it is none.

        Raises
        ------
        PlanError
            If the file is not here, or not the one that was described.
        """
        return None


@dataclass(frozen=True)
class Part(Source):
    """Rows ``first`` and on of another source."""

    whole: Source
    first: int

    @classmethod
    def of(cls, whole: Source, start: int, stop: int) -> Part:
        """Return rows ``start`` to ``stop`` of ``whole``."""
        return cls((stop - start, *whole.shape[1:]), whole.dtype, whole.together, whole, start)

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        return self.whole.read(self.first + start, self.first + stop, rest)

    def mapped(self) -> NDArray[Any] | None:
        """Return the part of the map of the whole."""
        found = self.whole.mapped()
        return None if found is None else found[self.first : self.first + self.shape[0]]


@dataclass(frozen=True)
class Region:
    """What one rank needs of a source, as ``[start, stop)`` of every dim, and in which dtype.

    ``block`` rows are read at once; at most ``cache_bytes`` of what was read are kept.
    """

    source: Source
    index: tuple[Run, ...]
    dtype: str
    block: int
    cache_bytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the region."""
        return tuple(stop - start for start, stop in self.index)

    @property
    def nbytes(self) -> int:
        """Bytes of the region if it were in memory."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def open(self) -> NDArray[Any] | Rows:
        """Return an array: the map of the file where there is one of the right dtype, else rows."""
        mapped = self.source.mapped()
        if mapped is None:
            return Rows(self, None)
        view = mapped[tuple(slice(*run) for run in self.index)]
        return view if view.dtype == np.dtype(self.dtype) else Rows(self, view)

    def read_into(self, whole: NDArray[Any]) -> None:
        """Read all of it into an array of its shape, a few megabytes at a time."""
        (first, last), *rest = self.index
        others = tuple(slice(*run) for run in rest)
        row_bytes = max(1, prod(self.source.shape[1:]) * np.dtype(self.source.dtype).itemsize)
        rows = max(1, _READ_BYTES // row_bytes // self.source.together) * self.source.together
        start = first
        while start < last:
            stop = min(last, (start // rows + 1) * rows)
            whole[start - first : stop - first] = self.source.read(start, stop, others)
            start = stop


_READ_BYTES = 8 * 2**20


class Rows:
    """Rows that are read when they are taken; of those read, as many are kept as fit the cache.

    Has what ranks ask of an array: its shape, slices of dim 0, and ``take`` along it.
    """

    def __init__(self, region: Region, mapped: NDArray[Any] | None) -> None:
        self.region = region
        self.shape, self.ndim = region.shape, len(region.shape)
        self.dtype, self.nbytes = np.dtype(region.dtype), region.nbytes
        self.reads = 0
        self._mapped = mapped
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._kept_bytes = 0
        self._block = max(region.block, region.source.together)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.take(np.arange(len(self))[rows])

    def take(self, index: NDArray[np.int64], axis: int = 0) -> NDArray[Any]:
        """Return the rows of ``index``, in its order; ``axis`` is 0 as in numpy's own ``take``."""
        if axis != 0:
            raise ValueError(f"rows are taken along axis 0, not {axis}")
        if self._mapped is not None:
            return self._mapped.take(index, axis=0).astype(self.dtype)
        result = np.empty((len(index), *self.shape[1:]), self.dtype)
        absolute = np.asarray(index) + self.region.index[0][0]
        blocks = absolute // self._block
        for block in np.unique(blocks).tolist():
            here = blocks == block
            start, values = self._read(block)
            result[here] = values[absolute[here] - start]
        return result

    def _read(self, block: int) -> tuple[int, NDArray[Any]]:
        """Return the rows of a block that are in the region, and the number of the first."""
        (first, last), *rest = self.region.index
        start, stop = max(first, block * self._block), min(last, (block + 1) * self._block)
        values = self._kept.pop(block, None)
        if values is None:
            values = self.region.source.read(start, stop, tuple(slice(*run) for run in rest))
            self.reads += 1
            self._kept_bytes += values.nbytes
        self._kept[block] = values  # the newest is the last
        while self._kept_bytes > self.region.cache_bytes and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return start, values
