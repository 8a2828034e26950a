"""Shares of arrays out of the parts of a checkpoint, on the worker that is to have them.

What a worker runs: numpy and safetensors, no torch. Parts are mapped, so that only what is wanted
of them is read, and copied once, to where it stays. Beside that each is hashed whole by one of
the workers; both release the GIL.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from workbench.checkpoint.manifest import NAME, Damaged, File
from workbench.checkpoint.parts import check, unseen
from workbench.checkpoint.pieces import Copy
from workbench.cluster.shared_array import allocate, holding
from workbench.errors import PlanError

_DTYPES = {
    "BOOL": "bool",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "C64": "complex64",
}
"""Numpy's names of the dtypes of safetensors."""


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
        raise PlanError(unseen(folder, worker))
    with ThreadPoolExecutor(1) as beside:
        verifying = beside.submit(_verify, folder, verified)
        try:
            parts = {
                file: mapped_arrays(os.path.join(folder, file))
                for file in dict.fromkeys(file for each in wanted for file, _ in each.sources)
            }
            found = {each.name: _read(each, parts) for each in wanted}
        except (SafetensorError, OSError, ValueError, IndexError, TypeError, KeyError) as error:
            verifying.result()  # a damaged file is the better reason
            raise Damaged(f"The checkpoint {folder} is damaged: {error}.") from error
        verifying.result()
    return found


def mapped_arrays(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file of safetensors by name, none of them read as yet.

    Raises
    ------
    SafetensorError, OSError, KeyError
        If it is none, or holds what numpy has no dtype for.
    """
    with safe_open(path, framework="np") as opened:  # checks that arrays fill the file, no gaps
        there = {name: opened.get_slice(name) for name in opened.offset_keys()}
        kinds = {
            name: (tuple(each.get_shape()), np.dtype(_DTYPES[each.get_dtype()]))
            for name, each in there.items()
        }
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, NDArray[Any]] = {}
    end = len(mapped)
    for name, (shape, dtype) in reversed(kinds.items()):
        end -= prod(shape) * dtype.itemsize
        arrays[name] = np.frombuffer(mapped, dtype, prod(shape), end).reshape(shape)
    return arrays


def _verify(folder: str, files: Mapping[str, File]) -> None:
    for name, file in files.items():
        check(os.path.join(folder, name), file)


def _read(wanted: Wanted, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> NDArray[Any]:
    """Return an array in shared memory, put together from the parts that have some of it."""
    array = None
    for file, copies in wanted.sources:
        there = parts[file][wanted.source]
        if str(there.dtype) != wanted.dtype:
            raise ValueError(f"{wanted.source} is of {there.dtype} and not of {wanted.dtype}")
        for dim, length in zip(copies, there.shape, strict=True):
            if dim[-1][0] + dim[-1][2] > length:
                raise ValueError(f"{wanted.source} is of the shape {there.shape}")
        if all(len(dim) == 1 for dim in copies):
            block = there[tuple(slice(at, at + length) for ((at, _, length),) in copies)]
            if block.shape == wanted.shape and block.flags.c_contiguous:
                return holding(block.reshape(-1).view(np.uint8).data, wanted.shape, wanted.dtype)
            array = allocate(wanted.shape, wanted.dtype) if array is None else array
            array[tuple(slice(to, to + length) for ((_, to, length),) in copies)] = block
        else:
            array = allocate(wanted.shape, wanted.dtype) if array is None else array
            origin, target = (np.ix_(*(_positions(dim, at) for dim in copies)) for at in (0, 1))
            array[target] = there[origin]
    return allocate(wanted.shape, wanted.dtype) if array is None else array


def _positions(copies: tuple[Copy, ...], which: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(c[which], c[which] + c[2]) for c in copies])
