"""Refusals of arrays that graph mode cannot work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da

from workbench.errors import PlanError
from workbench.given import parted


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


def as_inputs(x: Any, who: str, names: Sequence[str] = ()) -> tuple[da.Array, ...]:
    """Return what a model is given as dask arrays, checked, with chunks of the same samples.

    ``names`` are those by which a model takes them, if it does; then ``x`` may be a mapping.

    Raises
    ------
    PlanError
        If the arrays have not the same samples, or names are not those.
    """
    values, found = parted(x, "x")
    if found and sorted(found) != sorted(names):
        raise PlanError(
            f"{who} is given inputs by the names {', '.join(found)}; give a tuple of arrays, in "
            "the order of the model's arguments."
        )
    if found:
        values = tuple(values[found.index(name)] for name in names)
    first, *others = (as_dask(value, who) for value in values)
    for other in others:
        if not other.ndim or other.shape[:1] != first.shape[:1]:
            raise PlanError(
                f"{who} is given inputs of shape {first.shape} and {other.shape}; dim 0, which "
                "counts samples, must be the same."
            )
    return (first, *(other.rechunk({0: first.chunks[0]}) for other in others))


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
