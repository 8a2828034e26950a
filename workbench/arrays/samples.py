"""A model on an array of samples: batches gathered across chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import dask.array as da
import numpy as np
import torch
from dask._task_spec import Task
from torch import nn

from workbench.arrays.application import Application
from workbench.arrays.operators import on_meta
from workbench.arrays.resident import Resident, in_batches
from workbench.arrays.tasks import numpy_type
from workbench.errors import PlanError
from workbench.given import listed
from workbench.layers.trace import on_meta as model_on_meta

BATCH, GATHERED = 64, 512
"""Samples in one pass of the model, and in one task.

Larger passes are no faster on a CPU, where what a layer makes should stay near; larger tasks pay
Dask's time for a task less often.
"""
_BATCH_BYTES = 64 * 2**20


def output_of(
    model: nn.Module, inputs: Sequence[da.Array], title: str
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape (for one sample) and type of a model's outputs, without computing.

    Raises
    ------
    PlanError
        If the model does not take such samples, or gives other than one tensor with a row of
        outputs for each of them.
    """
    shapes = []
    for samples in (2, 3):
        made = [((samples, *x.shape[1:]), on_meta(x[:0]).dtype) for x in inputs]
        try:
            with torch.inference_mode():
                try:
                    out = model_on_meta(model)(
                        *(torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in made)
                    )
                except Exception:  # it looks at values: zeros tell
                    out = model(*(torch.zeros(shape, dtype=dtype) for shape, dtype in made))
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise PlanError(
                f"apply({title}): the model does not take {samples} samples of shape "
                f"{listed([x.shape[1:] for x in inputs])} and type "
                f"{listed([x.dtype for x in inputs])}: {first}."
            ) from error
        if not isinstance(out, torch.Tensor):
            raise PlanError(
                f"apply({title}): the model returns a {type(out).__name__}, and a dask array is "
                "one array; wrap it so that it returns the one tensor that you want."
            )
        shapes.append(tuple(out.shape))
    two, three = shapes
    if two[:1] != (2,) or three[:1] != (3,) or two[1:] != three[1:]:
        raise PlanError(
            f"apply({title}, strategy='data') needs a row of outputs for each sample, and for 2 "
            f"samples the model gives {two}, for 3 {three}."
        )
    return two[1:], numpy_type(out.dtype)


def batch_sizes(inputs: Sequence[da.Array], asked: int | None) -> tuple[int, int]:
    """Return how many samples to put through the model at once, and how many in one task."""
    sample_bytes = sum(prod(x.shape[1:]) * x.dtype.itemsize for x in inputs)
    fit = max(1, _BATCH_BYTES // max(1, sample_bytes))
    size = asked or min(BATCH, fit)
    return size, max(size, min(GATHERED, fit))


def in_samples(
    model: nn.Module, inputs: Sequence[da.Array], title: str, batch_size: int | None
) -> Application:
    """Lay out a model by batches of samples.

    Raises
    ------
    PlanError
        If the model does not take the samples, or does not give a row of outputs for each.
    """
    rest, dtype = output_of(model, inputs, title)
    resident = Resident.of(model)
    return by_batches(resident, resident.token, inputs, title, batch_size, rest, dtype)


def by_batches(
    task: Callable[[Any], Task] | Resident,
    token: str,
    inputs: Sequence[da.Array],
    title: str,
    batch_size: int | None,
    rest: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Application:
    """Lay out a model by batches of samples; ``task`` is the model, or brings it."""
    x, (size, gather) = inputs[0], batch_sizes(inputs, batch_size)
    made = in_batches(
        task, inputs, size=size, gather=gather, title=title, token=token, rest=rest, dtype=dtype
    )
    lines = (
        f"{x.shape[0]:,} samples in {x.numblocks[0]} chunks make {made.numblocks[0]} tasks of at "
        f"most {max(made.chunks[0], default=0)}, {size} through the model at once",
        "each worker gets the model once",
    )
    return Application("data", made, "batches", (), lines)
