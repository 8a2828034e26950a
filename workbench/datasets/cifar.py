"""CIFAR-10 from its binary files: records of one label and 3 x 32 x 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workbench.datasets.dataset import Dataset, lazy
from workbench.datasets.download import fetch
from workbench.datasets.files import Source, find, read_range
from workbench.errors import PlanError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32


def cifar10(folder: str | Path | None = None, download: bool = False) -> Dataset:
    """Return images (N, 3, 32, 32), float32 0..1, and labels 0..9, int64, from the binary files.

    Parameters
    ----------
    folder:
        Where ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` lie, or the
        folder above. Every worker reads its own chunks from it.
    download:
        Without a folder: download the archive (170 MB) into the user's cache.

    Raises
    ------
    PlanError
        if a file is missing or is not made of whole records.
    """
    if folder is None:
        if not download:
            raise PlanError(
                "CIFAR-10 needs folder=... with its six binary files, or download=True."
            )
        folder = fetch(URL, SHA256, unpack="cifar-10")
    where = Path(folder) / FOLDER if (Path(folder) / FOLDER).is_dir() else Path(folder)
    train, test = _records(where, TRAIN), _records(where, TEST)
    samples, held_out = _count(train), _count(test)
    return Dataset(
        name="cifar10",
        x=lazy(cifar_images, samples, SHAPE, "float32", sources=train),
        y=lazy(cifar_labels, samples, (), "int64", sources=train),
        test_x=lazy(cifar_images, held_out, SHAPE, "float32", sources=test),
        test_y=lazy(cifar_labels, held_out, (), "int64", sources=test),
        classes=10,
        description=f"{samples:,} colour images of 32 x 32 pixels, and {held_out:,} to test",
    )


def cifar_images(start: int, stop: int, sources: Sequence[Source]) -> np.ndarray:
    """Return the images (stop - start, 3, 32, 32) of these records, scaled to 0..1."""
    return _read(start, stop, sources)[:, 1:].reshape(-1, *SHAPE) / np.float32(255)


def cifar_labels(start: int, stop: int, sources: Sequence[Source]) -> np.ndarray:
    """Return the labels (stop - start,) of these records."""
    return _read(start, stop, sources)[:, 0].astype(np.int64)


def _read(start: int, stop: int, sources: Sequence[Source]) -> np.ndarray:
    found = read_range(sources, start * RECORD, stop * RECORD)
    return np.frombuffer(found, np.uint8).reshape(stop - start, RECORD)


def _records(folder: Path, names: Sequence[str]) -> tuple[Source, ...]:
    sources = tuple(find(folder / name) for name in names)
    for source in sources:
        if source.size % RECORD or not source.size:
            raise PlanError(
                f"{source.path} is not a CIFAR-10 file or is cut short: {source.size:,} bytes are "
                f"not a whole number of records of {RECORD:,} bytes."
            )
    return sources


def _count(sources: Sequence[Source]) -> int:
    return sum(source.size for source in sources) // RECORD
