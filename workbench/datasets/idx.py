"""MNIST, and any other data in its IDX format, from plain or gzip-compressed files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from workbench.datasets.dataset import Dataset, lazy
from workbench.datasets.download import fetch
from workbench.datasets.files import find
from workbench.errors import PlanError

MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"
SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""Name of each file and the SHA-256 of its ``.gz`` at the mirror."""


def mnist(
    folder: str | Path | None = None, download: bool = False, *, classes: int = 10
) -> Dataset:
    """Return images (N, 1, H, W), float32 0..1, and labels (N,), int64, from four IDX files.

    Parameters
    ----------
    folder:
        Where ``train-images-idx3-ubyte`` and the three others lie, plain or with ``.gz``. Every
        worker reads its own chunks from this folder.
    download:
        Without a folder: download MNIST (11 MB) into the user's cache.
    classes:
        Number of different labels; other data in the same format may have more than ten.

    Raises
    ------
    PlanError
        if a file is missing, is not in the format, is cut short, or images and labels do not match.
    """
    paths = {name: _locate(name, folder, download) for name in SHA256}
    x, y = _pair(paths["train-images-idx3-ubyte"], paths["train-labels-idx1-ubyte"])
    test_x, test_y = _pair(paths["t10k-images-idx3-ubyte"], paths["t10k-labels-idx1-ubyte"])
    height, width = x.shape[-2:]
    return Dataset(
        "mnist",
        x,
        y,
        test_x,
        test_y,
        classes,
        f"{len(x):,} images of {height} x {width} pixels, and {len(test_x):,} to test",
    )


def _locate(name: str, folder: str | Path | None, download: bool) -> Path:
    if folder is None:
        if not download:
            raise PlanError("MNIST needs folder=... with its four files, or download=True.")
        return fetch(f"{MIRROR}{name}.gz", SHA256[name])
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if path.is_file():
            return path
    raise PlanError(f"There is no file {name} or {name}.gz in {Path(folder).resolve()}.")


def _pair(images: Path, labels: Path) -> tuple:
    """Return the two files as dask arrays, after reading their headers."""
    samples, height, width = idx_shape(images, dims=3)
    (count,) = idx_shape(labels, dims=1)
    if count != samples or not samples:
        raise PlanError(
            f"{images} holds {samples:,} images and {labels} {count:,} labels; there must be one "
            f"label for each image, and at least one."
        )
    return (
        lazy(idx_images, samples, (1, height, width), "float32", path=find(images).path),
        lazy(idx_labels, samples, (), "int64", path=find(labels).path),
    )


def idx_shape(path: Path, dims: int) -> tuple[int, ...]:
    """Return the shape that the header of an IDX file of unsigned bytes gives; reads nothing else.

    The size of the file must fit the shape; a ``.gz`` file states its unpacked size in its last
    four bytes.

    Raises
    ------
    PlanError
        if the file is not of this format, has another number of dims, or is cut short.
    """
    source = find(path)
    header = _read(source.path, 0, 4 + 4 * dims)
    if len(header) < 4 + 4 * dims or header[:2] != b"\0\0":
        raise PlanError(f"{path} is not an IDX file: it begins with {header[:4].hex(' ')}.")
    if header[2] != 0x08 or header[3] != dims:
        raise PlanError(
            f"{path} is an IDX file of type {header[2]:#04x} with {header[3]} dims; "
            f"{dims} dims of unsigned bytes (type 0x08) are needed."
        )
    shape = struct.unpack(f">{dims}I", header[4:])
    expected = len(header) + math.prod(shape)
    found = source.size
    if path.suffix == ".gz":
        with open(path, "rb") as file:
            file.seek(-4, 2)
            (found,) = struct.unpack("<I", file.read(4))
        expected %= 2**32
    if found != expected:
        raise PlanError(
            f"{path} is damaged: for the shape {shape} of its header it needs {expected:,} bytes "
            f"unpacked and it states {found:,}."
        )
    return shape


def idx_images(start: int, stop: int, path: str) -> np.ndarray:
    """Return images (stop - start, 1, H, W) of an IDX file, scaled to 0..1."""
    _, height, width = idx_shape(Path(path), dims=3)
    size = height * width
    pixels = _items(path, 16 + start * size, 16 + stop * size)
    return pixels.reshape(-1, 1, height, width) / np.float32(255)


def idx_labels(start: int, stop: int, path: str) -> np.ndarray:
    """Return labels (stop - start,) of an IDX file."""
    return _items(path, 8 + start, 8 + stop).astype(np.int64)


def _items(path: str, start: int, stop: int) -> np.ndarray:
    found = _read(path, start, stop)
    if len(found) != stop - start:
        raise PlanError(
            f"{path} is damaged: of bytes {start:,} to {stop:,} only {len(found):,} are there."
        )
    return np.frombuffer(found, np.uint8)


def _read(path: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop`` of the unpacked file, or fewer where it ends before."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            file.seek(start)
            found = file.read(stop - start)
            file.read(1)  # behind the last chunk this checks the sum of a whole .gz file
            return found
    except (EOFError, OSError, zlib.error) as error:
        raise PlanError(f"{path} cannot be read: {error}.") from error
