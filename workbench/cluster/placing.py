"""Dask arrays onto workers, as numpy arrays that ranks can map."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, Future, futures_of
from numpy.typing import NDArray

from workbench.cluster.shared_array import allocate
from workbench.errors import PlanError


def place(client: Client, share: da.Array, worker: str) -> Future:
    """Have ``worker`` hold the whole of ``share`` as one array in shared memory.

    The chunks are computed on that worker, or come to it from the workers that hold them; the
    client never sees them. Equal shares that are placed on a worker again are the same future.

    Raises
    ------
    PlanError
        The array's shape is unknown, or its items are Python objects.
    """
    if share.dtype.hasobject or share.dtype.names:
        raise PlanError(
            f"An array of {share.dtype} cannot be given to ranks; convert it to numbers."
        )
    if any(np.isnan(size) for size in share.shape):
        raise PlanError(
            f"An array of unknown shape {share.shape} cannot be given to ranks; "
            f"call compute_chunk_sizes() on it first."
        )
    name = "workbench-share-" + tokenize(share, worker)
    blocks = [(offset, key) for offset, key in _offsets_and_keys(share)]
    layer: dict[Any, Any] = {
        (name, *[0] * share.ndim): (_assemble, share.shape, share.dtype, blocks)
    }
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[share])  # type: ignore[list-item]
    whole = da.Array(graph, name, chunks=tuple((n,) for n in share.shape), dtype=share.dtype)
    held = client.persist(whole, workers=[worker], allow_other_workers=False)
    return futures_of(held)[0]


def _offsets_and_keys(share: da.Array) -> list[tuple[list[int], tuple[Any, ...]]]:
    starts = [np.cumsum([0, *sizes]).tolist() for sizes in share.chunks]
    return [
        ([start[i] for start, i in zip(starts, index, strict=True)], (share.name, *index))
        for index in np.ndindex(*share.numblocks)
    ]


def _assemble(
    shape: tuple[int, ...], dtype: np.dtype[Any], blocks: list[tuple[list[int], NDArray[Any]]]
) -> NDArray[Any]:
    """Task: copy all blocks to their places in one shared array."""
    whole = allocate(shape, dtype)
    for offset, block in blocks:
        region = tuple(
            slice(start, start + size) for start, size in zip(offset, np.shape(block), strict=True)
        )
        whole[region] = block
    return whole
