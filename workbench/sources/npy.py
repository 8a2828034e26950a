"""Arrays that lie in a file as they do in memory: ``.npy``, and ``.npz`` not compressed."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from workbench.errors import PlanError
from workbench.sources.address import Address
from workbench.sources.source import Source

_RUN_BYTES = 2**20
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name and extra field


@dataclass(frozen=True)
class RawFile(Source):
    """Numbers in C or Fortran order from ``offset`` on, in a file of ``size`` bytes."""

    address: Address
    size: int
    offset: int
    fortran: bool = False

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        mapped = self.mapped()
        if mapped is not None:
            return np.array(mapped[(slice(start, stop), *rest)])
        row = prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        with self.address.open() as file:
            file.seek(self.offset + start * row)
            values = np.frombuffer(file.read((stop - start) * row), self.dtype)
        return values.reshape(stop - start, *self.shape[1:])[(slice(None), *rest)]

    def mapped(self) -> NDArray[Any] | None:
        """Return the map of the file, if it is on this machine."""
        if not self.address.is_local:
            return None
        check_size(self.address, self.size)
        options: dict[str, Any] = {"mode": "r", "offset": self.offset, "shape": self.shape}
        order = "F" if self.fortran else "C"
        return np.memmap(self.address.text, self.dtype, order=order, **options)  # type: ignore[call-overload]


@dataclass(frozen=True)
class ZippedArray(Source):
    """A compressed member of an ``.npz``, which can only be read as a whole."""

    address: Address
    size: int
    member: str

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        check_size(self.address, self.size)
        with self.address.open() as file, np.load(file, allow_pickle=False) as archive:
            whole: NDArray[Any] = archive[self.member]
        return whole[(slice(start, stop), *rest)]


def check_size(address: Address, size: int) -> None:
    """Raise PlanError if the file here is not of the size that the client saw."""
    here = address.size()
    if here != size:
        raise PlanError(
            f"{address.text} has {here:,} bytes here but {size:,} where the data was described; "
            f"every worker needs the same file."
        )


def find_npy(address: Address) -> dict[str, Source]:
    """Return the array of an ``.npy`` file as ``"x"``."""
    size = address.size()
    with address.open() as file:
        return {"x": _described(file, address, size, address.text)}


def find_npz(address: Address) -> dict[str, Source]:
    """Return the arrays of an ``.npz`` file by their names."""
    size = address.size()
    found: dict[str, Source] = {}
    with address.open() as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise PlanError(f"{address.text} is no .npz file: {error}.") from error
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                plain = _described(member, address, size, f"{name!r} of {address.text}")
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(info.header_offset)
                header = file.read(_LOCAL_HEADER)
                begin = info.header_offset + _LOCAL_HEADER
                begin += int.from_bytes(header[26:28], "little")
                begin += int.from_bytes(header[28:30], "little")
                file.seek(begin)
                found[name] = _described(file, address, size, name)
            else:
                found[name] = ZippedArray(
                    plain.shape, plain.dtype, max(1, plain.shape[0]), address, size, name
                )
    return found


def _described(file: Any, address: Address, size: int, what: str) -> RawFile:
    """Return the array whose header is next in ``file``."""
    try:
        version = npy_format.read_magic(file)
        read = {1: npy_format.read_array_header_1_0, 2: npy_format.read_array_header_2_0}
        shape, fortran, dtype = read.get(version[0], read[2])(file)
    except (ValueError, KeyError) as error:
        raise PlanError(f"{what} is no array in numpy's format: {error}.") from error
    if dtype.hasobject or dtype.names:
        raise PlanError(
            f"{what} holds items of {dtype}, which are no plain numbers; save "
            f"array.astype('float32')."
        )
    if fortran and not address.is_local:
        raise PlanError(
            f"{what} is in Fortran order, which can be read from this machine only; save "
            f"numpy.ascontiguousarray(array)."
        )
    row = max(1, prod(shape[1:]) * dtype.itemsize)
    together = 1 if address.is_local else max(1, _RUN_BYTES // row)
    return RawFile(tuple(shape), dtype.str, together, address, size, file.tell(), fortran)
