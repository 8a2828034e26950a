"""How a loss sums over samples, found by trying it on made-up numbers.

It decides how the losses of ranks and of micro-batches make that of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.divisors import Divisor
from workbench.errors import PlanError
from workbench.losses import class_dim, class_weights, divides_by_class, of_torch, title
from workbench.nested import over_tensors, tensors_in

Kind = Literal["mean", "sum", "weighted"]

SAMPLES = 3
"""So many samples are made up."""

_ODD = (-1, -100, 255)
"""Labels that stand for none, here and there."""

_CLOSE = 1e-4


def loss_kind(
    loss: Callable[..., Tensor],
    outputs: Any,
    target_shape: Sequence[int],
    target_dtype: str,
) -> Kind:
    """Find out how ``loss`` sums over samples.

    Parameters
    ----------
    loss:
        Takes outputs and targets and gives one number.
    outputs:
        What the model gives for :data:`SAMPLES` samples, see :func:`like`: a tensor, or several in
        a tuple, dict or dataclass. Shapes and dtypes are used.
    target_shape:
        Of one sample, without the batch dim.
    target_dtype:
        By numpy's name.

    Returns
    -------
    "mean"
        The loss of a batch is the mean of its samples' losses, whatever the targets.
    "sum"
        It is their sum.
    "weighted"
        It divides by what the targets say: see :class:`workbench.divisors.Divisor`. So does every
        mean that is not torch's own: which labels it leaves out, only those in the data can tell.

    Raises
    ------
    PlanError
        if it is none of these, gives more than one number, or does not take such arrays.
    """
    _check_weights(loss, outputs, target_dtype)
    known = of_torch(loss)
    by_class = divides_by_class(loss) and not target_dtype.startswith("float")
    divisor = Divisor(loss, outputs, SAMPLES)
    found: list[Kind | None] = []
    for draw in range(SAMPLES):
        out, targets = _made_up(loss, draw, outputs, target_shape, target_dtype)
        whole = _value(loss, out, targets)
        if by_class:
            return "weighted"
        if whole == 0 or not isfinite(whole):
            continue  # says nothing; draw other numbers
        if not known and divisor.tells(targets):
            found.append(_own_kind(loss, divisor, whole, out, targets))
        else:
            found.append(_plain_kind(loss, whole, out, targets))
        if known:
            break
    if found and len(set(found)) == 1 and (kind := found[0]) is not None:
        return kind
    raise PlanError(
        f"The loss {title(loss)} is neither the mean nor the sum of the losses of its samples, nor "
        f"a mean weighted by targets, so ranks and micro-batches cannot share it; give one that "
        f"is, or to leave out labels or for class weights "
        f"torch.nn.CrossEntropyLoss(ignore_index=..., weight=...)."
    )


def splits_along(
    loss: Callable[..., Tensor],
    output_shape: Sequence[int],
    target_shape: Sequence[int],
    target_dtype: str,
    dtype: str,
    dims: tuple[int, int],
    kind: str,
) -> bool:
    """Return whether the loss of a sample is made of those of its parts along a dim.

    ``dims`` are that dim of one sample's output and of its target, whose sizes are equal; ``kind``
    is what :func:`loss_kind` found. A weighted loss of torch splits along every dim that is no
    class.
    """
    if kind == "weighted" and of_torch(loss):
        return class_dim(loss) not in (dims[0] + 1, dims[0] - len(output_shape))
    size = output_shape[dims[0]]
    if size < 2:
        return False
    sizes = [max(1, size // 3), size - max(1, size // 3)]
    outputs = like(output_shape, dtype)
    divisors = [Divisor(loss, outputs, SAMPLES)] + [
        Divisor(loss, part, SAMPLES, part.shape[dims[0] + 1] / size)
        for part in outputs.split(sizes, dims[0] + 1)
    ]
    try:
        draws = _draws(loss, outputs, target_shape, target_dtype)
        for out, targets in draws[:1] if of_torch(loss) else draws:
            outs = [out, *out.split(sizes, dims[0] + 1)]
            goals = [targets, *targets.split(sizes, dims[1] + 1)]
            values = [_value(loss, o, t) for o, t in zip(outs, goals, strict=True)]
            weights: list[float | None] = [1.0, sizes[0] / size, sizes[1] / size]
            if kind == "sum":
                weights = [1.0, 1.0, 1.0]
            elif kind == "weighted":
                weights = [d.find(t) for d, t in zip(divisors, goals, strict=True)]
            if not _adds_up(values, weights, summed=kind == "sum"):
                return False
    except PlanError:
        return False
    return True


def like(output_shape: Sequence[int], dtype: str) -> Tensor:
    """Return a tensor on the meta device as outputs for :func:`loss_kind`; the shape is a sample's.

    ``dtype`` is numpy's name.
    """
    return torch.empty((SAMPLES, *output_shape), dtype=getattr(torch, dtype), device="meta")


def _own_kind(
    loss: Callable[..., Tensor], divisor: Divisor, whole: float, outputs: Any, targets: Tensor
) -> Kind | None:
    """Return how a loss sums of which a divisor can be found."""
    parts = _parts(outputs, targets)
    weights = [divisor.find(t) for t in (targets, *(t for _, t in parts))]
    values = [whole, *(_value(loss, *part) for part in parts)]
    if weights == [0.0, 0.0, 0.0]:
        return "sum" if _adds_up(values, [1.0, 1.0, 1.0], summed=True) else None
    return "weighted" if _adds_up(values, weights) else None


def _plain_kind(
    loss: Callable[..., Tensor], whole: float, outputs: Any, targets: Tensor
) -> Kind | None:
    """Return how a loss of torch sums, or one without a gradient."""
    parts = _parts(outputs, targets)
    values = [whole, *(_value(loss, *part) for part in parts)]
    if _adds_up(values, [1.0, 1 / SAMPLES, 1 - 1 / SAMPLES]):
        return "mean"
    return "sum" if _adds_up(values, [1.0, 1.0, 1.0], summed=True) else None


def _parts(outputs: Any, targets: Tensor) -> list[tuple[Any, Tensor]]:
    """Return the first sample and the others."""

    def some(rows: slice) -> Any:
        def part(x: Tensor) -> Tensor:
            return x[rows] if x.dim() and len(x) == SAMPLES else x

        return over_tensors(outputs, part)

    return [(some(rows), targets[rows]) for rows in (slice(0, 1), slice(1, None))]


def _adds_up(
    values: Sequence[float], weights: Sequence[float | None], *, summed: bool = False
) -> bool:
    """Return whether parts make the whole, which comes first; so do weights, but not of a sum."""
    found = [weight for weight in weights if weight is not None]
    if len(found) < len(values) or not found[0]:
        return False
    whole, *some = found
    if not (summed or isclose(whole, sum(some), rel_tol=_CLOSE)):
        return False
    # What weighs nothing has no loss: it would be 0 / 0.
    parts = sum(w * v for w, v in zip(some, values[1:], strict=True) if w)
    return isclose(whole * values[0], parts, rel_tol=_CLOSE)


def _check_weights(loss: Callable[..., Tensor], outputs: Any, target_dtype: str) -> None:
    weights = class_weights(loss)
    if weights is None or target_dtype.startswith("float") or not isinstance(outputs, Tensor):
        return
    if outputs.dim() > 1 and len(weights) != (classes := outputs.shape[class_dim(loss) or 1]):
        raise PlanError(
            f"The loss {title(loss)} has weights for {len(weights)} classes and the model "
            f"gives {classes}; the two numbers must be the same."
        )


def _draws(
    loss: Callable[..., Tensor], outputs: Any, target_shape: Sequence[int], target_dtype: str
) -> list[tuple[Any, Tensor]]:
    """Return outputs and targets with ordinary targets, and with some that often mean nothing."""
    out, targets = _made_up(loss, 0, outputs, target_shape, target_dtype)
    found = [(out, targets)]
    source = torch.Generator().manual_seed(SAMPLES)
    some = torch.rand(targets.shape, generator=source) < 1 / 3
    for odd in (0,) if targets.is_floating_point() else _ODD:
        mixed = targets.masked_fill(some, odd)
        if _takes(loss, out, mixed):
            found.append((out, mixed))
    return found


def _made_up(
    loss: Callable[..., Tensor],
    draw: int,
    outputs: Any,
    target_shape: Sequence[int],
    target_dtype: str,
) -> tuple[Any, Tensor]:
    """Return outputs and targets; numbers in 0.1..0.9 are right for every loss."""
    source = torch.Generator().manual_seed(draw)

    def numbers(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if not dtype.is_floating_point:
            return torch.randint(2, shape, generator=source).to(dtype)
        return 0.1 + 0.8 * torch.rand(shape, generator=source, dtype=dtype)

    made = over_tensors(outputs, lambda x: numbers(x.shape, x.dtype))
    shape = (SAMPLES, *target_shape)
    if target_dtype.startswith("float"):
        return made, numbers(shape, getattr(torch, target_dtype))
    # Below the number of classes, whichever dim counts them; or yes and no.
    fewest = min((size for x in tensors_in(outputs) for size in x.shape[1:]), default=1)
    labels = torch.randint(max(2, fewest), shape, generator=source)
    return made, labels if _takes(loss, made, labels) else labels % max(1, fewest)


def _takes(loss: Callable[..., Tensor], outputs: Any, targets: Tensor) -> bool:
    try:
        _value(loss, outputs, targets)
    except PlanError:
        return False
    return True


def _value(loss: Callable[..., Tensor], outputs: Any, targets: Tensor) -> float:
    try:
        with torch.no_grad():
            found: object = loss(outputs, targets)
            if isinstance(found, Tensor) and found.numel() == 1:
                return float(found)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors_in(outputs)) or "unknown"
        raise PlanError(
            f"The loss {title(loss)} does not take an output of shape {shapes} and "
            f"targets of shape {tuple(targets.shape)} and dtype {_dtype(targets)} for "
            f"{len(targets)} samples: {reason}"
        ) from error
    got = str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__
    raise PlanError(
        f"The loss {title(loss)} gives {got} for {len(targets)} samples and not one number; "
        f"use reduction='mean'."
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
