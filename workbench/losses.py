"""What a loss says of itself: where its classes are, what it leaves out, what tensors it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def of_torch(loss: Callable[..., Tensor]) -> bool:
    """Return whether the loss is torch's own, so that it is known what it divides by.

    One that is derived from a loss of torch, or calls it, may do anything.
    """
    if isinstance(loss, partial):
        old = {"size_average", "reduce"}
        return not loss.args and old.isdisjoint(loss.keywords) and of_torch(loss.func)
    if isinstance(loss, nn.Module):
        return type(loss) is NextByteLoss or type(loss).__module__ == "torch.nn.modules.loss"
    return isinstance(loss, FunctionType) and loss.__module__ == "torch.nn.functional"


def divides_by_class(loss: Callable[..., Tensor]) -> bool:
    """Return whether it is a loss of torch on labels, a mean that :func:`loss_weight` weighs."""
    options = _class_options(loss)
    if options is None or not of_torch(loss) or options.get("reduction", "mean") != "mean":
        return False
    return options.get("weight") is not None or ignored_label(loss) is not None


def class_weights(loss: Callable[..., Tensor]) -> Tensor | None:
    """Return the weights of the classes of a loss of torch; None if it has none."""
    found: Tensor | None = (_class_options(loss) or {}).get("weight")
    return found


def title(loss: Callable[..., Tensor]) -> str:
    """Return the name of a loss for a sentence."""
    inner = loss.func if isinstance(loss, partial) else loss
    return getattr(inner, "__name__", None) or type(inner).__name__


def _class_options(loss: Callable[..., Tensor]) -> dict[str, Any] | None:
    """Return weight, ignore_index and reduction of a loss on labels; None for other losses."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return {key: getattr(loss, key) for key in ("weight", "ignore_index", "reduction")}
    if loss in _BY_CLASS:
        return {}
    if isinstance(loss, partial) and loss.func in _BY_CLASS:
        return dict(loss.keywords)
    return None
