"""Columns of numbers in Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import PlanError
from workbench.sources.address import Address, needed
from workbench.sources.source import Source


@dataclass(frozen=True)
class Columns(Source):
    """Columns of a table in Parquet files, side by side, or one that is no matrix: ``flat``.

    ``groups`` are the row groups: number of the file, number in it, first row.
    """

    files: tuple[Address, ...]
    groups: tuple[tuple[int, int, int], ...]
    names: tuple[str, ...]
    flat: bool

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        ends = [*(first for _, _, first in self.groups[1:]), self.shape[0]]
        pieces = []
        for (file, group, first), end in zip(self.groups, ends, strict=True):
            if first < stop and start < end:
                read = self._group(file, group)
                pieces.append(read[max(start - first, 0) : stop - first])
        return np.concatenate(pieces)[(slice(None), *rest)]

    def _group(self, file: int, group: int) -> NDArray[Any]:
        table = _opened(self.files[file]).read_row_group(group, columns=list(self.names))
        columns = []
        for name in self.names:
            column = table.column(name)
            if column.null_count:
                raise PlanError(
                    f"Column {name!r} of {self.files[file].text} has {column.null_count:,} empty "
                    f"values in row group {group}; fill them first."
                )
            columns.append(_numbers(column).astype(self.dtype, copy=False))
        return columns[0] if self.flat else np.stack(columns, axis=1)

    def with_names(self, names: tuple[str, ...], dtypes: dict[str, str]) -> Columns:
        """Return several columns as one matrix, in the dtype that holds them all."""
        dtype = np.result_type(*(dtypes[name] for name in names)).str
        shape = (self.shape[0], len(names))
        return Columns(shape, dtype, self.together, self.files, self.groups, names, False)


def find_parquet(address: Address) -> dict[str, Source]:
    """Return the columns of numbers of a file, or of all files of a folder, by their names.

    A column of lists of one length is a matrix.

    Raises
    ------
    PlanError
        If there is no Parquet file, or pyarrow is not installed, or no column is of numbers.
    """
    pyarrow = needed("pyarrow", "Parquet")
    files = [address]
    if address.is_folder():
        files = [address.join(n) for n in address.names() if n.endswith((".parquet", ".pq"))]
    if not files:
        raise PlanError(f"There is no Parquet file in {address.text}.")
    groups, first, schema = [], 0, None
    for number, file in enumerate(files):
        opened = _opened(file)
        schema = schema or opened.schema_arrow
        if opened.schema_arrow.names != schema.names:
            raise PlanError(
                f"{file.text} has other columns than {files[0].text}; files of one table have the "
                f"same."
            )
        for group in range(opened.metadata.num_row_groups):
            groups.append((number, group, first))
            first += opened.metadata.row_group(group).num_rows
    together = max((b - a for a, b in _gaps(groups, first)), default=1)
    found: dict[str, Source] = {}
    for field in schema or ():
        width: tuple[int, ...] = ()
        kind = field.type
        if pyarrow.types.is_fixed_size_list(kind):
            width, kind = (kind.list_size,), kind.value_type
        if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
            dtype = np.dtype(kind.to_pandas_dtype()).str
        elif pyarrow.types.is_boolean(kind):
            dtype = "|b1"
        else:
            continue
        shape = (first, *width)
        found[field.name] = Columns(
            shape, dtype, together, tuple(files), tuple(groups), (field.name,), True
        )
    if not found:
        raise PlanError(f"{address.text} has no column of numbers; convert some first.")
    return found


def _gaps(groups: list[tuple[int, int, int]], total: int) -> list[tuple[int, int]]:
    starts = [first for _, _, first in groups]
    return list(zip(starts, [*starts[1:], total], strict=True))


def _numbers(column: Any) -> NDArray[Any]:
    """Return a column as numpy numbers, lists of one length as rows."""
    kind = column.type
    if hasattr(kind, "list_size"):
        flat = column.combine_chunks().flatten()
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, kind.list_size)
    return np.asarray(column.to_numpy())


@lru_cache(maxsize=64)
def _opened(address: Address) -> Any:
    parquet = needed("pyarrow.parquet", "Parquet")
    try:
        if address.is_local:
            address.size()
            return parquet.ParquetFile(address.text)
        filesystem, path = address.filesystem()
        return parquet.ParquetFile(filesystem.open(path, "rb"))
    except (OSError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{address.text} is no Parquet file that can be read: {error}.") from error
