"""Numpy arrays that lie in anonymous shared memory, so that another process maps them uncopied.

The memory is a memfd: it has no name in any file system and is freed with its last user, so
nothing can be left behind by a process that is killed.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from workbench.comm.kernel import memfd_create


class _Segment(mmap.mmap):
    """A mapping that remembers the descriptor of its memfd."""

    descriptor: int


def allocate(shape: Sequence[int], dtype: DTypeLike) -> NDArray:
    """Return a zeroed array of ``shape`` in memory of its own that can be shared."""
    descriptor = memfd_create("workbench-array")
    try:
        os.ftruncate(descriptor, max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        return attach(descriptor, shape, dtype, writable=True)
    finally:
        os.close(descriptor)


def holding(data: memoryview, shape: Sequence[int], dtype: DTypeLike) -> NDArray:
    """Return an array of ``data``, which is as many bytes as it has, in memory as of `allocate`.

    That memory is not cleared and not mapped before it is written, which halves the time.
    """
    descriptor = memfd_create("workbench-array")
    try:
        os.ftruncate(descriptor, max(1, len(data)))
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], written)
        return attach(descriptor, shape, dtype, writable=True)
    finally:
        os.close(descriptor)


def attach(
    descriptor: int, shape: Sequence[int], dtype: DTypeLike, *, writable: bool = False
) -> NDArray:
    """Return the array that lies in the memfd ``descriptor``, which stays the caller's to close."""
    count = math.prod(shape)
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    length = max(1, count * np.dtype(dtype).itemsize)
    segment = _Segment(descriptor, length, mmap.MAP_SHARED, access)
    segment.descriptor = os.dup(descriptor)
    weakref.finalize(segment, os.close, segment.descriptor).atexit = False
    return np.frombuffer(segment, dtype=dtype, count=count).reshape(shape)


def descriptor_of(array: NDArray) -> int | None:
    """Return the memfd of an array that fills its shared memory, in C order; else None.

    The descriptor lives as long as the array.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    segment = owner.obj if isinstance(owner, memoryview) else owner
    if not isinstance(segment, _Segment) or not array.flags.c_contiguous:
        return None
    whole = np.frombuffer(segment, dtype=np.uint8)
    same_start = whole.ctypes.data == array.ctypes.data
    return segment.descriptor if same_start and len(segment) == max(1, array.nbytes) else None


def shared(array: NDArray) -> NDArray:
    """Return ``array`` itself if it can be shared as it is, else a copy that can."""
    if descriptor_of(array) is not None:
        return array
    copy = allocate(array.shape, array.dtype)
    copy[...] = array
    return copy
