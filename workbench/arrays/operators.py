"""Torch's functions on dask arrays: lazy, chunked in any dims, with the numbers of whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from workbench.arrays import ALONG, ELEMENTWISE, OF_TORCH, WINDOWED
from workbench.arrays.checks import check_array
from workbench.arrays.graphs import lower
from workbench.arrays.recording import record
from workbench.errors import PlanError

Operator = Callable[..., da.Array]


def operator(function: Callable[..., Any], name: str = "") -> Operator:
    """Return any function on tensors as one on dask arrays.

    Parameters
    ----------
    function:
        Takes tensors and returns one: a function of ``torch.nn.functional``, or your own. It is
        called once, on arrays without memory, to see which of torch's operations it comes to.
    name:
        What its tasks are called; the name of the function if left out.

    Returns
    -------
    Function with the same arguments, of which any array may be a dask array. Its result is a lazy
    dask array with the numbers of ``function`` on whole arrays. A dim is cut in proportion to the
    dim of the input that its places go with, in the same places where sizes are equal; other dims
    are one chunk.
    """
    title = name or getattr(function, "__name__", "operator").strip("<>")

    def on_arrays(*args: Any, **kwargs: Any) -> da.Array:
        leaves, shape = pytree.tree_flatten((args, kwargs))
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, da.Array)]
        arrays = [leaves[n] for n in places]
        if not arrays:
            raise PlanError(
                f"{title} needs a dask array, and was given "
                f"{', '.join(type(leaf).__name__ for leaf in leaves) or 'nothing'}; make one with "
                "dask.array.from_array(x, chunks=...)."
            )
        for x in arrays:
            check_array(x, title)
        fixed = [
            torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf
            for leaf in leaves
        ]

        def code(*inputs: Tensor) -> Any:
            given = list(fixed)
            for n, x in zip(places, inputs, strict=True):
                given[n] = x
            own, named = pytree.tree_unflatten(given, shape)
            return function(*own, **named)

        network = record(code, [on_meta(x) for x in arrays], title)
        return lower(network, arrays, title)

    on_arrays.__name__ = on_arrays.__qualname__ = title
    on_arrays.__doc__ = _document(function, title)
    return on_arrays


def on_meta(x: da.Array) -> Tensor:
    """Return a tensor without memory of the shape and type of a dask array."""
    dtype = torch.from_numpy(np.empty(0, x.dtype)).dtype
    return torch.empty(x.shape, dtype=dtype, device="meta")


def _document(function: Callable[..., Any], title: str) -> str:
    return (
        f"Return :func:`torch.nn.functional.{title}` of dask arrays, lazily.\n\n"
        "Arguments are torch's; any array may be a dask array, chunked in any dims, a numpy array "
        "or a\ntensor. The numbers are those of whole arrays.\n\n"
        "Raises\n------\nPlanError\n"
        "    If chunks have unknown sizes or hold no numbers, or torch refuses the shapes."
    )


def _all() -> dict[str, Operator]:
    found = {n: operator(getattr(F, n), n) for n in (*ELEMENTWISE, *WINDOWED, *ALONG)}
    return {**found, **{n: operator(getattr(torch, n), n) for n in OF_TORCH}}


OPERATORS = _all()
