"""One part of a checkpoint, on the worker that writes it or reads of it.

What a worker runs: numpy and safetensors, no torch. Parts are mapped, so that only what is wanted
of them is read, and hashed whole beside that, by one of the workers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from workbench.checkpoint.manifest import NAME, Damaged, File
from workbench.checkpoint.pieces import Copy
from workbench.cluster.shared_array import allocate
from workbench.errors import PlanError

PROBE = ".probe"
"""A file by which a worker finds out whether it sees the folder that the client has made."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An array that a rank needs, and where it is: by file, what to copy of each dim.

    ``source`` is its name in the files, ``name`` the one that it gets.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[tuple[str, tuple[tuple[Copy, ...], ...]], ...]


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
    if _text(Path(folder, PROBE)) != probe:
        raise PlanError(_unseen(folder, worker))
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
    if _text(Path(path)) != probe:
        raise PlanError(_unseen(os.path.dirname(path), worker))
    _write({name: arrays[kept] for name, kept in names.items()}, path)
    sync(path)


def read_shares(
    folder: str, worker: str, verified: Mapping[str, File], wanted: Sequence[Wanted]
) -> dict[str, NDArray[Any]]:
    """Task: return arrays in shared memory, and verify some files of the checkpoint beside that.

    Raises
    ------
    Damaged
        A file is not what it should be.
    PlanError
        This worker does not see the folder.
    """
    if not Path(folder, NAME).exists():
        raise PlanError(_unseen(folder, worker))
    with ThreadPoolExecutor(1) as beside:
        verifying = beside.submit(_verify, folder, verified)
        opened: dict[str, Any] = {}
        try:
            found = {}
            for each in wanted:
                array = found[each.name] = allocate(each.shape, each.dtype)
                for file, copies in each.sources:
                    if file not in opened:
                        opened[file] = safe_open(os.path.join(folder, file), framework="np")
                    _copy(opened[file], each, copies, array)
        except (SafetensorError, OSError, ValueError, IndexError, TypeError, KeyError) as error:
            verifying.result()  # a damaged file is the better reason
            raise Damaged(f"The checkpoint {folder} is damaged: {error}.") from error
        verifying.result()
    return found


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


def _write(arrays: Mapping[str, NDArray[Any]], path: str) -> None:
    whole = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in arrays.items()}
    try:
        save_file(whole, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _verify(folder: str, files: Mapping[str, File]) -> None:
    for name, file in files.items():
        check(os.path.join(folder, name), file)


def _copy(
    opened: Any, wanted: Wanted, copies: tuple[tuple[Copy, ...], ...], array: NDArray[Any]
) -> None:
    """Copy to ``array`` what a file has of it."""
    there = opened.get_slice(wanted.source)
    # Only what lies between the first and the last entry that is wanted is read.
    ranges = [(dim[0][0], dim[-1][0] + dim[-1][2]) for dim in copies]
    if all((0, n) == run for n, run in zip(there.get_shape(), ranges, strict=True)):
        block = opened.get_tensor(wanted.source)
    else:
        block = there[tuple(slice(*run) for run in ranges)]
    if str(block.dtype) != wanted.dtype:
        raise ValueError(f"{wanted.source} is of {block.dtype} and not of {wanted.dtype}")
    if all(len(dim) == 1 for dim in copies):
        array[tuple(slice(to, to + length) for ((_, to, length),) in copies)] = block
        return
    origin, target = (np.ix_(*(_positions(dim, which) for dim in copies)) for which in (0, 1))
    offsets = np.ix_(*(np.array([start]) for start, _ in ranges))
    array[target] = block[tuple(o - start for o, start in zip(origin, offsets, strict=True))]


def _positions(copies: tuple[Copy, ...], which: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(c[which], c[which] + c[2]) for c in copies])


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _unseen(folder: str, worker: str) -> str:
    return (
        f"The worker {worker} does not see the folder {folder}: a checkpoint is written and read "
        "by all workers, so give a path on a file system that they and you share."
    )
