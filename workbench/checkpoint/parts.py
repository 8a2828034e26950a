"""One part of a checkpoint, on the worker that writes it: on the disk, and hashed.

What a worker runs: numpy and safetensors, no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from workbench.checkpoint.manifest import Damaged, File
from workbench.errors import PlanError

PROBE = ".probe"
"""A file by which a worker finds out whether it sees the folder that the client has made."""


def write_part(
    folder: str, probe: str, name: str, worker: str, arrays: Mapping[str, NDArray[Any]]
) -> File:
    """Task: write arrays to a file of safetensors and have it on the disk when this returns.

    Raises
    ------
    PlanError
        This worker does not see the folder.
    OSError
        The file cannot be written.
    """
    if _text_of(Path(folder, PROBE)) != probe:
        raise PlanError(unseen(folder, worker))
    path = os.path.join(folder, name)
    _write(arrays, path)
    with ThreadPoolExecutor(1) as beside:  # the disk takes its time
        digest = beside.submit(sha256, path)
        sync(path)
        return File(os.path.getsize(path), digest.result())


def write_plain(
    path: str, probe: str, worker: str, names: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Task: write whole arrays to one file, each under all of its names, and on the disk.

    Raises
    ------
    PlanError, OSError
        As :func:`write_part`.
    """
    if _text_of(Path(path)) != probe:
        raise PlanError(unseen(os.path.dirname(path), worker))
    _write({name: arrays[kept] for name, kept in names.items()}, path)
    sync(path)


def sha256(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str) -> None:
    """Have a file or the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(path: str, file: File) -> None:
    """Raise Damaged if a part is not what it was when it was written."""
    try:
        found = sha256(path)
    except OSError as error:
        raise Damaged(f"The checkpoint is damaged: {path}: {error.strerror}.") from error
    if found != file.sha256:
        raise Damaged(
            f"The checkpoint is damaged: {path} has the SHA-256 {found[:12]}… and should have "
            f"{file.sha256[:12]}…"
        )


def unseen(folder: str, worker: str) -> str:
    """Return what to say where ``worker`` cannot find ``folder``."""
    return (
        f"The worker {worker} does not see the folder {folder}: a checkpoint is written and read "
        "by all workers, so give a path on a file system that they and you share."
    )


def _write(arrays: Mapping[str, NDArray[Any]], path: str) -> None:
    whole = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in arrays.items()}
    try:
        save_file(whole, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
