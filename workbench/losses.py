"""How a loss sums over samples, which decides how the losses of several ranks make one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isclose
from types import CellType, FunctionType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import PlanError

Kind = Literal["mean", "sum", "weighted"]
_BY_CLASS = (F.cross_entropy, F.nll_loss)
_DEFAULT_IGNORED = -100


class NextByteLoss(nn.CrossEntropyLoss):
    """Cross-entropy at every position: logits (N, T, classes) against targets (N, T)."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over all positions of all samples."""
        return super().forward(logits.movedim(-1, 1), targets)


def class_dim(loss: Callable[..., Tensor]) -> int | None:
    """Return the dim of the model's output that counts classes, or None if the loss has none."""
    if isinstance(loss, NextByteLoss):
        return -1
    return None if _class_options(loss) is None else 1


def shared_class_dim(
    loss: Callable[..., Tensor],
    output_shape: Sequence[int],
    target_shape: Sequence[int],
    target_dtype: str,
) -> int:
    """Return the dim of classes if ranks that have some each can compute the loss together.

    That is cross-entropy with classes as targets; 0 for all else. Shapes are those of a batch.
    """
    dim = (class_dim(loss) or 0) % max(1, len(output_shape))
    rest = (*output_shape[:dim], *output_shape[dim + 1 :])
    fits = dim > 0 and tuple(target_shape) == rest and not target_dtype.startswith("float")
    return dim if fits and cross_entropy_options(loss) is not None else 0


def cross_entropy_options(loss: Callable[..., Tensor]) -> dict[str, Any] | None:
    """Return weight, ignore_index, reduction and label_smoothing of cross-entropy; else None."""
    names = ("weight", "ignore_index", "reduction", "label_smoothing")
    found: dict[str, Any] = {}
    if type(loss) in (nn.CrossEntropyLoss, NextByteLoss):
        found = {name: getattr(loss, name) for name in names}
    elif isinstance(loss, partial) and loss.func is F.cross_entropy and not loss.args:
        found = dict(loss.keywords)
    elif loss is not F.cross_entropy:
        return None
    defaults = {"weight": None, "ignore_index": _DEFAULT_IGNORED, "reduction": "mean"}
    found = {**defaults, "label_smoothing": 0.0, **found}
    known = found.keys() == set(names) and found["reduction"] in ("mean", "sum")
    return found if known else None


def smooths_labels(loss: Callable[..., Tensor]) -> bool:
    """Return whether the loss is cross-entropy with smoothed labels."""
    return bool((cross_entropy_options(loss) or {}).get("label_smoothing"))


def ignored_label(loss: Callable[..., Tensor]) -> int | None:
    """Return the label that the loss leaves out if one was chosen, which torch's default is not."""
    options = _class_options(loss) or {}
    chosen = options.get("ignore_index", _DEFAULT_IGNORED)
    return None if chosen == _DEFAULT_IGNORED else int(chosen)


def loss_weight(loss: Callable[..., Tensor], targets: Tensor) -> Tensor:
    """Return what a "weighted" loss divides by: the weights of all labels that are not left out.

    The loss of all ranks is ``sum(weight * loss) / sum(weight)``. Where the weight of a part is 0
    its loss is NaN (0 / 0): leave that part out.
    """
    options = _class_options(loss) or {}
    chosen = targets[targets != options.get("ignore_index", _DEFAULT_IGNORED)]
    weights = options.get("weight")
    if weights is None:
        return torch.tensor(float(chosen.numel()), device=targets.device)
    return weights.to(targets.device)[chosen].sum()


def on_device(loss: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Return the loss with its tensors, such as class weights, on ``device``.

    They are found in a module, among the arguments of a partial, in what a function has closed
    over, and in its defaults.
    """
    moved: Callable[..., Tensor] = _moved(loss, device)
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor | nn.Module):
        return value.to(device)
    if isinstance(value, partial):
        keywords = {key: _moved(item, device) for key, item in value.keywords.items()}
        arguments = (_moved(item, device) for item in value.args)
        return partial(_moved(value.func, device), *arguments, **keywords)
    if isinstance(value, FunctionType):
        return _function_on(value, device)
    return value


def _function_on(function: FunctionType, device: torch.device) -> FunctionType:
    """Return a function of one's own code with the tensors that it holds on ``device``."""
    cells = function.__closure__ or ()
    try:
        held = [cell.cell_contents for cell in cells]
    except ValueError:  # a name that nothing has been given to yet
        return function
    defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    holders = (Tensor, nn.Module, partial)
    if not any(isinstance(item, holders) for item in (*held, *defaults, *named.values())):
        return function
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        tuple(_moved(item, device) for item in defaults),
        tuple(CellType(_moved(item, device)) for item in held),
    )
    made.__kwdefaults__ = {key: _moved(item, device) for key, item in named.items()}
    return made


def loss_kind(
    loss: Callable[..., Tensor],
    output_shape: Sequence[int],
    target_shape: Sequence[int],
    target_dtype: str,
    dtype: str = "float32",
) -> Kind:
    """Find out how ``loss`` sums over samples, by trying it on made-up numbers.

    Parameters
    ----------
    loss:
        Takes outputs and targets and gives one number.
    output_shape, target_shape:
        Of one sample, without the batch dim.
    target_dtype, dtype:
        Of the targets and of the outputs, by numpy's names.

    Returns
    -------
    "mean"
        The loss of a batch is the mean of its samples' losses.
    "sum"
        It is their sum.
    "weighted"
        It is a mean weighted by class, or one that leaves a label out: see :func:`loss_weight`.

    Raises
    ------
    PlanError
        if it is none of these, gives more than one number, or does not take such arrays.
    """
    weighted = _is_weighted(loss, output_shape, target_dtype)
    for draw in range(3):
        outputs, targets = _made_up(draw, output_shape, target_shape, target_dtype, dtype)
        whole = _value(loss, outputs, targets)
        if weighted:
            return "weighted"
        one, two = _value(loss, outputs[:1], targets[:1]), _value(loss, outputs[1:], targets[1:])
        if whole == 0:
            continue  # says nothing; draw other numbers
        if isclose(whole, (one + 2 * two) / 3, rel_tol=1e-4):
            return "mean"
        if isclose(whole, one + two, rel_tol=1e-4):
            return "sum"
        break
    raise PlanError(
        f"The loss {_title(loss)} is neither the mean nor the sum of the losses of its samples, so "
        f"ranks cannot share it; give one that is, or for class weights "
        f"torch.nn.CrossEntropyLoss(weight=...)."
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
    """Return whether the loss of a sample is the mean (or sum) of those of its parts along a dim.

    ``dims`` are that dim of one sample's output and of its target, whose sizes are equal; ``kind``
    is what :func:`loss_kind` found. A "weighted" loss splits along every dim that is no class.
    """
    if kind == "weighted":
        return class_dim(loss) not in (dims[0] + 1, dims[0] - len(output_shape))
    outputs, targets = _made_up(0, output_shape, target_shape, target_dtype, dtype)
    size = output_shape[dims[0]]
    if size < 2:
        return False
    first = max(1, size // 3)
    try:
        whole = _value(loss, outputs, targets)
        parts = [
            _value(loss, out, goal)
            for out, goal in zip(
                outputs.split([first, size - first], dims[0] + 1),
                targets.split([first, size - first], dims[1] + 1),
                strict=True,
            )
        ]
    except PlanError:
        return False
    if kind == "sum":
        return isclose(whole, sum(parts), rel_tol=1e-4)
    mean = (parts[0] * first + parts[1] * (size - first)) / size
    return isclose(whole, mean, rel_tol=1e-4)


def _is_weighted(
    loss: Callable[..., Tensor], output_shape: Sequence[int], target_dtype: str
) -> bool:
    options = _class_options(loss)
    if options is None or target_dtype.startswith("float"):
        return False  # on probabilities torch divides by the number of samples
    weights = options.get("weight")
    if weights is not None and len(output_shape):
        classes = output_shape[-1 if class_dim(loss) == -1 else 0]
        if len(weights) != classes:
            raise PlanError(
                f"The loss {_title(loss)} has weights for {len(weights)} classes and the model "
                f"gives {classes}; the two numbers must be the same."
            )
    averages = options.get("reduction", "mean") == "mean"
    return averages and (weights is not None or ignored_label(loss) is not None)


def _made_up(
    draw: int,
    output_shape: Sequence[int],
    target_shape: Sequence[int],
    target_dtype: str,
    dtype: str,
) -> tuple[Tensor, Tensor]:
    """Return outputs and targets of three samples; numbers in 0.1..0.9 are right for every loss."""
    source = torch.Generator().manual_seed(draw)

    def numbers(shape: Sequence[int]) -> Tensor:
        return 0.1 + 0.8 * torch.rand((3, *shape), generator=source, dtype=getattr(torch, dtype))

    outputs = numbers(output_shape)
    if target_dtype.startswith("float"):
        return outputs, numbers(target_shape)
    # Below the number of classes, whichever dim counts them.
    highest = max(1, min(output_shape, default=1))
    return outputs, torch.randint(highest, (3, *target_shape), generator=source)


def _value(loss: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> float:
    try:
        with torch.no_grad():
            found: object = loss(outputs, targets)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PlanError(
            f"The loss {_title(loss)} does not take an output of shape {tuple(outputs.shape)} and "
            f"targets of shape {tuple(targets.shape)} and dtype {_dtype(targets)} for "
            f"{len(outputs)} samples: {reason}"
        ) from error
    if not isinstance(found, Tensor) or found.numel() != 1:
        got = str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__
        raise PlanError(
            f"The loss {_title(loss)} gives {got} for {len(outputs)} samples and not one number; "
            f"use reduction='mean'."
        )
    return float(found)


def _class_options(loss: Callable[..., Tensor]) -> dict[str, Any] | None:
    """Return weight, ignore_index and reduction of a loss on labels; None for other losses."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return {key: getattr(loss, key) for key in ("weight", "ignore_index", "reduction")}
    if loss in _BY_CLASS:
        return {}
    if isinstance(loss, partial) and loss.func in _BY_CLASS:
        return dict(loss.keywords)
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _title(loss: Callable[..., Tensor]) -> str:
    inner = loss.func if isinstance(loss, partial) else loss
    return getattr(inner, "__name__", None) or type(inner).__name__
