"""Whole models on dask arrays, lazily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dask.array as da
    from torch import nn


def apply(
    model: nn.Module | Callable[[], nn.Module],
    x: Any,
    strategy: str = "auto",
    batch_size: int | None = None,
    *,
    tile: int | Sequence[int] | None = None,
    way: str = "auto",
) -> da.Array:
    """Return what ``model`` makes of a dask array, as a lazy dask array.

    Parameters
    ----------
    model:
        A module in eval mode, or what makes one.
    x:
        A dask array with samples in dim 0, chunked in any dims; a numpy array or a tensor is one
        chunk. A tuple of them for a model that takes several inputs, which goes by ``"data"``.
    strategy:
        ``"data"``: each worker gets the model once, and chunks of samples go through it together,
        ``batch_size`` at a time. ``"spatial"``: images larger than memory, tile by tile, with the
        numbers that the model gives for the whole image. ``"auto"``: spatial if dims from 2 on are
        in chunks, else data.
    batch_size:
        Samples in one pass of the model; about 256 if left out.
    tile:
        Sizes of the output's chunks along the dims from 2 on; in proportion to the input's chunks
        if left out.
    way:
        Of ``"spatial"``: ``"tiles"`` (the whole network for each tile), ``"layers"`` (one layer
        after the other, which exchange rows between chunks), or by cost.

    Returns
    -------
    Lazy array of the model's output; nothing is computed. ``workbench.arrays.explain`` with the
    same arguments says how and why.

    Raises
    ------
    PlanError
        If the model is in training mode or does not take the array, if chunks have unknown sizes or
        hold no numbers, or if a layer needs more of the array at once than fits in a task.
    """
    from workbench.arrays.explaining import explain

    return explain(model, x, strategy, batch_size, tile=tile, way=way).array
