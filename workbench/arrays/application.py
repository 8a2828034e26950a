"""A model on an array as it is carried out, and what a model has to be for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dask.array as da
from torch import nn

from workbench.arrays.operators import on_meta
from workbench.arrays.receptive import Field
from workbench.errors import PlanError


@dataclass(frozen=True)
class Application:
    """A model on an array, laid out.

    Attributes
    ----------
    strategy:
        ``"data"`` or ``"spatial"``.
    array:
        The lazy result.
    way:
        ``"batches"``, ``"tiles"`` (the whole network for each tile) or ``"layers"``.
    field:
        The receptive field of the model along each cut dim; of ``"spatial"`` only.
    lines:
        What was chosen and why, a sentence each.
    """

    strategy: str
    array: da.Array
    way: str
    field: tuple[Field, ...] = ()
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a few lines."""
        fields = [f"receptive field along {field}" for field in self.field]
        return "\n".join([f"{self.strategy}, by {self.way}", *fields, *self.lines])


def check_model(model: nn.Module, inputs: Sequence[da.Array], title: str) -> None:
    """Check that a model is in eval mode and computes in the type of the arrays.

    Raises
    ------
    PlanError
        If not.
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        where = f"its layer {training[0]!r}" if training[0] else "it"
        raise PlanError(
            f"apply({title}): {where} is in training mode, in which dropout and batch statistics "
            "make the result depend on chance and on the batch; call model.eval() first."
        )
    elsewhere = [n for n, p in model.named_parameters() if p.device.type != "cpu"]
    if elsewhere:
        raise PlanError(
            f"apply({title}): its parameter {elsewhere[0]!r} lies on another device than the CPU, "
            "where dask arrays are; use model.cpu()."
        )
    own = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), None)
    for x in inputs:
        if x.ndim == 0:
            raise PlanError(
                f"apply({title}) needs an array with samples in dim 0, and it has no dim."
            )
        given = on_meta(x).dtype
        if own is not None and given.is_floating_point and given != own:
            asked = str(own).removeprefix("torch.")
            raise PlanError(
                f"apply({title}): the array is {x.dtype} and the model's parameters are {asked}; "
                f'use x.astype("{asked}").'
            )
