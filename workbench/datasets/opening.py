"""Files of any kind as dask arrays: the client reads how large they are, workers the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, prod
from os import PathLike
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from workbench.datasets.adopt import CAST, MOST_CHUNKS
from workbench.datasets.dataset import CHUNKS
from workbench.errors import PlanError
from workbench.mesh import shares
from workbench.sources.finding import find
from workbench.sources.parquet import Columns
from workbench.sources.source import Part, Source

CHUNK_BYTES = 32 * 2**20
"""About the size of a chunk: large enough to be read fast, small beside a worker's memory."""


class SourceLayer(MaterializedLayer):
    """The layer of a graph whose chunks are rows of a source."""

    def __init__(self, mapping: Mapping[Any, Any], source: Source) -> None:
        super().__init__(mapping)
        self.source = source


class Arrays(Mapping[str, da.Array]):
    """What was found, as lazy dask arrays by name; made by :func:`dataset`.

    ``data["x"]`` is one array; ``data[["a", "b"]]`` are columns of a table side by side; and
    ``data[:1000]`` are the first rows of all.

    Attributes
    ----------
    where:
        The path or address.
    classes:
        Names of the classes that labels count, where folders have named them.
    """

    def __init__(self, where: str, sources: Mapping[str, Source], classes: tuple[str, ...]) -> None:
        self.where, self.classes = where, classes
        self._sources = dict(sources)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self._rows(key)
        if isinstance(key, list):
            return as_array(self._table(key))
        if key not in self._sources:
            raise PlanError(f"{self.where} has no {key!r}; it has {', '.join(self._sources)}.")
        return as_array(self._sources[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, key: object) -> bool:
        return key in self._sources

    def __repr__(self) -> str:
        """List names, shapes and dtypes."""
        lines = [
            f"  {name}: {source.shape} {np.dtype(source.dtype).name}"
            for name, source in self._sources.items()
        ]
        return "\n".join([f"<{self.where}>", *lines])

    def _rows(self, rows: slice) -> Arrays:
        if rows.step not in (None, 1):
            raise PlanError(f"Rows are taken one after another; a step of {rows.step} is not.")
        parts = {}
        for name, source in self._sources.items():
            start, stop, _ = rows.indices(source.shape[0])
            if start >= stop:
                raise PlanError(
                    f"{name!r} of {self.where} has {source.shape[0]:,} rows, and none from "
                    f"{rows.start} to {rows.stop}."
                )
            parts[name] = Part.of(source, start, stop)
        return Arrays(self.where, parts, self.classes)

    def _table(self, names: list[str]) -> Source:
        chosen = [self._sources.get(name) for name in names]
        wholes = [c.whole if isinstance(c, Part) else c for c in chosen]
        if not names or not all(isinstance(w, Columns) and len(w.shape) == 1 for w in wholes):
            raise PlanError(
                f"Only columns of a Parquet table can stand side by side; {self.where} has "
                f"{', '.join(self._sources)}, and {names} was asked for."
            )
        dtypes = {name: w.dtype for name, w in zip(names, wholes, strict=True) if w is not None}
        first, whole = chosen[0], wholes[0]
        assert isinstance(whole, Columns)
        table: Source = whole.with_names(tuple(names), dtypes)
        if isinstance(first, Part):
            table = Part.of(table, first.first, first.first + first.shape[0])
        return table


def dataset(
    source: str | PathLike[str] | Any,
    *,
    size: tuple[int, int] | None = None,
    channels: int = 3,
    storage_options: dict[str, Any] | None = None,
) -> Arrays:
    """Open data of any kind as lazy dask arrays, by name; only metadata is read here.

    Parameters
    ----------
    source:
        A path, an address of fsspec such as ``"s3://bucket/x.npy"``, or anything with
        ``__getitem__`` and ``__len__``, such as a torch ``Dataset``. Files: ``.npy`` (found as
        ``"x"``), ``.npz``, Zarr, HDF5, Parquet (by column), ``.tar`` as WebDataset writes them (by
        ending); folders of images (``"x"``, and ``"y"`` where each class has its folder), of
        Parquet files, of Zarr.
    size:
        ``(height, width)`` to which images are scaled; without it all must be of one size.
    channels:
        Of images: 3 for colours, 1 for grey.
    storage_options:
        For fsspec's driver.

    Raises
    ------
    PlanError
        If it does not exist, cannot be read, is of no known kind, or a package is missing.
    """
    if channels not in (1, 3):
        raise PlanError(f"channels={channels!r} of images must be 1 (grey) or 3 (colours).")
    if size is not None and not (
        len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise PlanError(f"size={size!r} must be (height, width) in pixels.")
    return Arrays(*find(source, size, channels, storage_options))


def as_array(source: Source) -> da.Array:
    """Return the dask array of a source, in chunks of whole rows."""
    name = "workbench-rows-" + tokenize(source)
    sizes = _chunk_rows(source)
    rest = source.shape[1:]
    held = f"{name}-source"
    layer: dict[Any, Any] = {held: source}
    start = 0
    for number, rows in enumerate(sizes):
        layer[(name, number, *[0] * len(rest))] = (_read, held, start, start + rows)
        start += rows
    graph = HighLevelGraph({name: SourceLayer(layer, source)}, {name: set()})
    return da.Array(graph, name, (sizes, *((n,) for n in rest)), dtype=np.dtype(source.dtype))


def source_of(array: da.Array) -> Source | None:
    """Return the source whose rows are those of ``array``, in whatever dtype; else None."""
    name, layers = array.name, array.dask.layers
    if name.startswith(CAST):
        (name,) = array.dask.dependencies[name]
    layer = layers.get(name)
    return layer.source if isinstance(layer, SourceLayer) else None


def _read(source: Source, start: int, stop: int) -> np.ndarray:
    mapped = source.mapped()
    return source.read(start, stop) if mapped is None else np.asarray(mapped[start:stop])


def _chunk_rows(source: Source) -> tuple[int, ...]:
    rows = source.shape[0]
    row_bytes = max(1, prod(source.shape[1:]) * np.dtype(source.dtype).itemsize)
    count = max(min(CHUNKS, rows), -(-rows * row_bytes // CHUNK_BYTES))
    count = min(count, MOST_CHUNKS, rows)
    if source.together == 1:
        return shares(rows, count)
    together = ceil(ceil(rows / count) / source.together) * source.together
    whole, left = divmod(rows, together)
    return (*[together] * whole, *([left] if left else []))
