"""Refusals of arrays that graph mode cannot work on."""

from __future__ import annotations

import math
from typing import Any

import dask.array as da

from workbench.errors import PlanError


def check_array(x: da.Array, who: str) -> None:
    """Check that a dask array has chunks of known sizes, and numbers in them.

    Raises
    ------
    PlanError
        If not.
    """
    for dim, sizes in enumerate(x.chunks):
        if any(math.isnan(size) for size in sizes):
            raise PlanError(
                f"{who} needs the sizes of all chunks, and dim {dim} of the array has chunks of "
                "unknown sizes; call x.compute_chunk_sizes() first."
            )
    if x.dtype.kind not in "fiubc":
        raise PlanError(
            f"{who} needs an array of numbers, and its chunks hold {x.dtype}; convert it first, as "
            'with x.astype("float32").'
        )
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:
        raise PlanError(
            f"{who} needs a type that torch computes with, and {x.dtype} is none; use "
            'x.astype("int64").'
        )


def as_dask(x: Any, who: str) -> da.Array:
    """Return a dask array, of a numpy array or a tensor in one chunk, checked."""
    if not isinstance(x, da.Array):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise PlanError(
                f"{who} needs a dask array, and was given a {type(x).__name__}; make one with "
                "dask.array.from_array(x, chunks=...)."
            )
        x = da.from_array(x.detach().cpu().numpy() if hasattr(x, "detach") else x, chunks=-1)
    check_array(x, who)
    return x
