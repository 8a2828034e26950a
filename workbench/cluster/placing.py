"""Dask arrays and regions of files onto workers, as what ranks can map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, Future, Worker, futures_of, get_worker
from numpy.typing import NDArray

from workbench import machine
from workbench.cluster.shared_array import allocate
from workbench.errors import PlanError
from workbench.sources.source import Region

IN_MEMORY, CACHE = 4, 8
"""A region of at most 1/4 of a worker's memory is read whole; else 1/8 is kept of what was read."""


def received_bytes(*, dask_worker: Worker) -> int:
    """Return the bytes that this worker has received from others, as far as Dask remembers.

    That is its last transfers, a thousand unless Dask is configured otherwise.
    """
    return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)


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


def load(client: Client, region: Region, worker: str) -> Future:
    """Have ``worker`` look at a region of a file, and read it into shared memory if that is wise.

    A file that can be mapped is left to the rank, which maps it: nothing is copied. What is no map
    and needs more than a quarter of the worker's memory is left to the rank too, which reads rows
    as it needs them. The rest is read once. The client sees nothing of it.
    """
    return client.submit(
        _load,
        region,
        key="workbench-region-" + tokenize(region, worker),
        workers=[worker],
        allow_other_workers=False,
        retries=0,
    )


def _load(region: Region) -> NDArray[Any] | Region:
    """Task: see :func:`load`."""
    if region.source.mapped() is not None:
        return region
    memory = get_worker().memory_manager.memory_limit or machine.memory_bytes()
    if region.nbytes * IN_MEMORY > memory:
        return replace(region, cache_bytes=memory // CACHE)
    whole = allocate(region.shape, region.dtype)
    region.read_into(whole)
    return whole


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
