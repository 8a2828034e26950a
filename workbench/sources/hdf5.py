"""HDF5 files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import PlanError
from workbench.sources.address import Address, needed
from workbench.sources.npy import RawFile, check_size
from workbench.sources.source import Source

_RUN_BYTES = 2**20


@dataclass(frozen=True)
class Hdf5Dataset(Source):
    """A dataset of an HDF5 file that lies there in chunks, or is read from afar."""

    address: Address
    size: int
    member: str

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        check_size(self.address, self.size)
        with _opened(self.address) as file:
            return np.asarray(file[self.member][(slice(start, stop), *rest)])


def find_hdf5(address: Address) -> dict[str, Source]:
    """Return the datasets of a file by their paths in it.

    What lies there in one piece, not compressed, is mapped as an ``.npy`` file is.

    Raises
    ------
    PlanError
        If it is no HDF5 file, or h5py is not installed.
    """
    size = address.size()
    found: dict[str, Source] = {}

    def visit(name: str, item: Any) -> None:
        if not hasattr(item, "shape") or not item.shape:
            return
        shape, dtype = tuple(item.shape), item.dtype
        offset = item.id.get_offset() if address.is_local and item.chunks is None else None
        plain = (
            not dtype.hasobject and not dtype.names and not item.external and not item.is_virtual
        )
        if offset is not None and plain:
            found[name] = RawFile(shape, dtype.str, 1, address, size, offset)
        else:
            row = max(1, prod(shape[1:]) * dtype.itemsize)
            together = item.chunks[0] if item.chunks else max(1, _RUN_BYTES // row)
            found[name] = Hdf5Dataset(shape, dtype.str, together, address, size, name)

    with _opened(address) as file:
        file.visititems(visit)
    return dict(sorted(found.items()))


@contextmanager
def _opened(address: Address) -> Iterator[Any]:
    """Open a file and close it again: one that is left to Python's end may crash it."""
    h5py = needed("h5py", "HDF5")
    with ExitStack() as stack:
        where = address.text if address.is_local else stack.enter_context(address.open())
        try:
            file = h5py.File(where, "r", locking=False)
        except OSError as error:
            raise PlanError(f"{address.text} is no HDF5 file that can be read: {error}.") from error
        yield stack.enter_context(file)
