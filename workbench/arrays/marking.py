"""How good a model is on dask arrays of samples and targets: only sums leave the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import torch
from dask.delayed import Delayed
from torch import Tensor, nn

from workbench.arrays.application import check_model
from workbench.arrays.checks import as_dask, as_inputs
from workbench.arrays.resident import Resident, batches, passes, samples_of
from workbench.arrays.samples import batch_sizes, output_of
from workbench.arrays.threads import few_threads
from workbench.errors import PlanError
from workbench.pickling import dump, load
from workbench.scoring import Marks, Score
from workbench.trials import like, loss_kind

_MERGED_AT_ONCE = 16


def cross_entropy() -> Callable[..., Tensor]:
    """Return the loss that is taken where none is given."""
    return nn.CrossEntropyLoss()


def score_arrays(
    model: nn.Module,
    data: tuple[Any, Any],
    loss: Callable[..., Tensor],
    batch_size: int | None = None,
) -> Score:
    """Return loss, accuracy and confusion table of ``model`` on ``(x, y)``, batch by batch.

    Raises
    ------
    PlanError
        If the model is in training mode, or the data does not fit it or the loss.
    """
    title = type(model).__name__
    inputs, y = as_inputs(data[0], "evaluate"), as_dask(data[1], "evaluate")
    x = inputs[0]
    check_model(model, inputs, title)
    if x.shape[0] != y.shape[0]:
        raise PlanError(
            f"evaluate({title}): there are {x.shape[0]} samples and {y.shape[0]} targets."
        )
    rest, dtype = output_of(model, inputs, title)
    kind = loss_kind(loss, like(rest, str(dtype)), y.shape[1:], str(y.dtype))
    size, gather = batch_sizes(inputs, batch_size)
    inputs = tuple(each.rechunk({dim: -1 for dim in range(1, each.ndim)}) for each in inputs)
    y = y.rechunk({0: x.chunks[0], **{dim: -1 for dim in range(1, y.ndim)}})
    resident = dask.delayed(Resident.of(model), pure=True)
    judge = dask.delayed(dump({"loss": loss}), pure=True)
    samples, targets = [each.to_delayed().ravel() for each in inputs], y.to_delayed().ravel()
    marks: list[Delayed] = [
        dask.delayed(_mark)(
            resident,
            judge,
            kind,
            size,
            [[of_input[chunk] for chunk in chunks] for of_input in samples],
            [targets[chunk] for chunk in chunks],
        )
        for number, chunks in enumerate(batches(x, gather))
    ]
    while len(marks) > 1:
        marks = [
            dask.delayed(_merge)(marks[first : first + _MERGED_AT_ONCE])
            for first in range(0, len(marks), _MERGED_AT_ONCE)
        ]
    if not marks:
        raise PlanError(f"evaluate({title}): there is no sample to score.")
    (found,) = dask.compute(marks[0])
    score: Score = found.score()
    return score


def _mark(
    resident: Resident,
    judge: bytes,
    kind: str,
    size: int,
    samples: Sequence[Sequence[np.ndarray]],
    targets: Sequence[np.ndarray],
) -> Marks:
    inputs, y = [samples_of(chunks) for chunks in samples], samples_of(targets)
    marks = Marks(load(judge)["loss"], kind)
    with few_threads(), torch.inference_mode():
        for here in passes(len(y), size):
            out = resident.model(*(torch.from_numpy(x[here]) for x in inputs))
            marks.add(out, torch.from_numpy(y[here]))
    return marks


def _merge(some: Sequence[Marks]) -> Marks:
    first, *others = some
    whole = Marks(first.loss, first.kind)
    for marks in (first, *others):  # what a task is given stays as it is
        whole.merge(marks)
    return whole
