"""From what a user gave to the sources in it, by the ending of a file's name or by what it is."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from workbench.errors import PlanError
from workbench.sources.address import Address, parse
from workbench.sources.hdf5 import find_hdf5
from workbench.sources.images import find_images, find_tar
from workbench.sources.items import find_items
from workbench.sources.npy import find_npy, find_npz
from workbench.sources.parquet import find_parquet
from workbench.sources.source import Source
from workbench.sources.zarr_array import find_zarr

KINDS = {
    ".npy": find_npy,
    ".npz": find_npz,
    ".zarr": find_zarr,
    ".h5": find_hdf5,
    ".hdf5": find_hdf5,
    ".parquet": find_parquet,
    ".pq": find_parquet,
}


def find(
    given: Any, size: tuple[int, int] | None, channels: int, options: dict[str, Any] | None
) -> tuple[str, dict[str, Source], tuple[str, ...]]:
    """Return where it lies, its sources by name, and the names of classes.

    Raises
    ------
    PlanError
        If it does not exist, cannot be read, or is of no known kind.
    """
    if not isinstance(given, str | os.PathLike):
        if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
            raise PlanError(
                f"A {type(given).__name__} is no data; give a path, an address, or something with "
                f"__getitem__ and __len__."
            )
        return type(given).__name__, _checked(find_items(given), type(given).__name__), ()
    address = parse(os.fspath(given), options)
    classes: tuple[str, ...] = ()
    if address.suffix in KINDS:
        found = KINDS[address.suffix](address)
    elif address.suffix == ".tar":
        found = find_tar(address, size, channels)
    elif address.is_folder():
        found, classes = _in_folder(address, size, channels)
    else:
        address.size()  # what is not there is said first
        raise PlanError(
            f"{address.text} is of no known kind; known are {', '.join(KINDS)}, .tar, and folders "
            f"of images, of Parquet files or of Zarr."
        )
    return address.text, _checked(found, address.text), classes


def _in_folder(
    address: Address, size: tuple[int, int] | None, channels: int
) -> tuple[dict[str, Source], tuple[str, ...]]:
    names = address.names()
    if {"zarr.json", ".zarray", ".zgroup"} & set(names):
        return find_zarr(address), ()
    if any(name.endswith((".parquet", ".pq")) for name in names):
        return find_parquet(address), ()
    return find_images(address, size, channels)


def _checked(found: dict[str, Source], where: str) -> dict[str, Source]:
    for name, source in found.items():
        if np.dtype(source.dtype).kind not in "biuf":
            raise PlanError(
                f"{name!r} of {where} has items of {source.dtype}; only bools, integers and real "
                f"numbers can be given to ranks."
            )
        if not source.shape or 0 in source.shape:
            raise PlanError(f"{name!r} of {where} has shape {source.shape} and so holds no sample.")
    return found
