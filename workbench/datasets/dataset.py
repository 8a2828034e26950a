"""The Dataset, how its arrays are made chunk by chunk, and the split into train and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np

from workbench.errors import PlanError
from workbench.mesh import shares

CHUNKS = 8
"""Chunks along dim 0 of every array: few enough to be cheap, enough to be spread over ranks."""


@dataclass(frozen=True)
class Dataset:
    """Data to learn from and to test on; dim 0 of every array counts the samples.

    ``classes`` is the number of labels, or None where ``y`` is not made of labels.
    """

    name: str
    x: da.Array
    y: da.Array
    test_x: da.Array
    test_y: da.Array
    classes: int | None
    description: str


def lazy(
    read: Callable[..., np.ndarray],
    samples: int,
    item_shape: tuple[int, ...],
    dtype: str,
    **facts: Any,
) -> da.Array:
    """Return a dask array (samples, *item_shape) whose chunks are ``read(start, stop, **facts)``.

    ``read`` is an importable function and runs where the chunk is wanted. ``facts`` go into the
    graph, so they are numbers and file names, never data.
    """
    sizes = shares(samples, min(CHUNKS, samples))
    array: da.Array = da.map_blocks(
        _read_chunk,
        read,
        facts,
        chunks=(sizes, *((n,) for n in item_shape)),
        meta=np.empty((0,) * (1 + len(item_shape)), dtype),
    )
    return array


def _read_chunk(
    read: Callable[..., np.ndarray], facts: dict[str, Any], block_info: Any = None
) -> np.ndarray:
    start, stop = block_info[None]["array-location"][0]
    return read(int(start), int(stop), **facts)


def split_sizes(samples: int, test_share: float) -> tuple[int, int]:
    """Return how many of ``samples`` are for training and how many for testing.

    Raises
    ------
    PlanError
        if ``test_share`` leaves nothing for one of the two.
    """
    test = round(samples * test_share) if 0 < test_share < 1 else 0
    if not 0 < test < samples:
        raise PlanError(
            f"A test share of {test_share} splits {samples:,} samples into {samples - test:,} for "
            f"training and {test:,} for testing; both need at least one, so give a share between "
            f"{1 / samples:.2g} and {1 - 1 / samples:.2g}."
        )
    return samples - test, test


def split_indices(samples: int, seed: int, start: int, stop: int, first: int) -> np.ndarray:
    """Return places ``first + start`` to ``first + stop`` of the seed's permutation of the samples.

    Training takes the permutation's beginning (``first=0``), testing its end (``first`` = number of
    training samples), so they never share a sample. Every chunk makes the permutation anew: that
    is cheaper than sending it along.
    """
    return np.random.default_rng(seed).permutation(samples)[first + start : first + stop]
