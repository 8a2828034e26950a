"""Which way a model takes on an array, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from workbench.arrays.application import Application, check_model
from workbench.arrays.checks import as_inputs
from workbench.arrays.images import in_tiles
from workbench.arrays.samples import in_samples
from workbench.errors import PlanError
from workbench.recipe import make_model

STRATEGIES = ("auto", "data", "spatial")


def explain(
    model: nn.Module | Callable[[], nn.Module],
    x: Any,
    strategy: str = "auto",
    batch_size: int | None = None,
    *,
    tile: int | Sequence[int] | None = None,
    way: str = "auto",
) -> Application:
    """Return how :func:`workbench.apply` carries out a model on an array, and the result.

    Arguments are the same. Print it: it has the receptive field, and what the ways would cost.
    """
    made = make_model(model)
    title = type(made).__name__
    inputs = as_inputs(x, f"apply({title})")
    x = inputs[0]
    _check(strategy, batch_size, way)
    check_model(made, inputs, title)
    if len(inputs) > 1:
        if strategy == "spatial" or tile is not None:
            raise PlanError(
                f"apply({title}, strategy='spatial') lays out one image by tiles, and the model is "
                f"given {len(inputs)} inputs; use strategy='data'."
            )
        return in_samples(made, inputs, title, batch_size)
    if strategy == "auto":
        cut = [dim for dim in range(2, x.ndim) if len(x.chunks[dim]) > 1]
        if cut or tile is not None:
            chosen = in_tiles(made, x, title, tile, way)
            why = (
                f"auto took spatial: dim {cut[0]} of the array is in chunks"
                if cut
                else ("auto took spatial: tiles are asked for")
            )
        else:
            chosen = in_samples(made, inputs, title, batch_size)
            why = "auto took data: every sample lies in one chunk"
        return _with(chosen, why)
    if strategy == "data":
        return in_samples(made, inputs, title, batch_size)
    return in_tiles(made, x, title, tile, way)


def _with(chosen: Application, line: str) -> Application:
    return Application(
        chosen.strategy, chosen.array, chosen.way, chosen.field, (*chosen.lines, line)
    )


def _check(strategy: str, batch_size: int | None, way: str) -> None:
    if strategy not in STRATEGIES:
        allowed = ", ".join(repr(s) for s in STRATEGIES)
        raise PlanError(f"apply(strategy={strategy!r}): there is no such strategy; use {allowed}.")
    if way not in ("auto", "tiles", "layers"):
        raise PlanError(f"apply(way={way!r}): there is no such way; use 'auto', 'tiles', 'layers'.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise PlanError(f"apply(batch_size={batch_size!r}): a batch has at least 1 sample.")
