"""What a loss divides by, found from outside: by one sample more, whose gradient tells.

The loss of a batch is ``N / W``. Both add up over samples; what a sample adds to N goes by its
output, what it adds to W by its targets alone: 1 in a mean, 0 for a label that is left out, the
weight of its class. Put one sample of our own, which adds w, beside a batch: the gradient of its
output is 1 / (W + w) of what it adds to N, and by itself 1 / w of the same. So the two gradients
are parallel, and W / w is their ratio less 1, whatever the loss does inside. For a sum it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.errors import RunError
from workbench.losses import loss_weight, of_torch, title
from workbench.nested import over_tensors, tensors_in

_ROUNDING = 2000
"""Times the smallest difference of the dtype: further apart, gradients are not parallel."""

_ON_GPU = 5e-3
"""Products in a loss may be of TF32 there, another kind of them for each number of samples."""


class Divisor:
    """What a loss divides by for the targets in hand.

    Its unit is what a sample of our own has, the same on all ranks and for all batches; so it says
    how much the loss of a part of a batch counts in that of the whole.

    Parameters
    ----------
    loss:
        Takes outputs and targets and gives one number.
    outputs:
        What the model gives for some samples: a tensor, or several in a tuple, dict or dataclass.
        Shapes and dtypes are used, so they may be on the meta device.
    samples:
        How many samples that are. Tensors whose dim 0 does not count them are taken as they are.
    part:
        Of the positions of a sample, the part that is in these outputs.
    """

    def __init__(
        self, loss: Callable[..., Tensor], outputs: Any, samples: int, part: float = 1.0
    ) -> None:
        self._loss, self._outputs, self._samples, self._part = loss, outputs, samples, part
        kinds = [x.dtype for x in tensors_in(outputs) if x.is_floating_point()]
        self._rounding = _ROUNDING * max((torch.finfo(kind).eps for kind in kinds), default=0.0)
        self._draw = 0
        self._target: Tensor | None = None
        self._alone: Tensor | None = None
        self._used: list[bool] = []

    def of(self, targets: Tensor) -> float:
        """Return what the loss divides by for ``targets``, of any number of samples.

        Raises
        ------
        RunError
            If that is no one number, or one that does not add up over samples.
        """
        found = self.find(targets)
        if found is None or (not found and not self._nothing(targets)):
            raise RunError(
                f"For the targets of this batch the loss {title(self._loss)} divides by several "
                "numbers, or by one that does not add up over samples, so ranks or micro-batches "
                "cannot share it; let it divide once, by the number of targets that count, or use "
                "serial with accumulate=1."
            )
        return found

    def tells(self, targets: Tensor) -> bool:
        """Return whether the loss has a gradient, without which nothing is found."""
        return of_torch(self._loss) or self._begin(targets) is not None

    def find(self, targets: Tensor) -> float | None:
        """Return what the loss divides by, or None if no one number is found; 0 for a sum."""
        if of_torch(self._loss):
            return float(loss_weight(self._loss, targets))
        alone = self._begin(targets)
        if alone is None:
            return None
        beside = self._gradient(targets)
        ratio = float(alone @ beside) / (float(beside @ beside) or torch.nan)
        apart = float((alone - ratio * beside).abs().max() / alone.abs().max())
        if not apart <= max(self._rounding, _ON_GPU * targets.is_cuda):
            return None
        more = ratio - 1
        if abs(more - round(more)) <= self._rounding / 10 * max(1.0, more):
            more = float(round(more))  # a count, or nothing
        return more * self._part

    def ends(self, outputs: Any, targets: Tensor) -> list[Tensor]:
        """Return the tensors of ``outputs`` from which a backward pass without a loss begins.

        Of several, those that the loss depends on: parameters behind others have no gradient.
        """
        tensors = tensors_in(outputs)
        several = self._outputs is not None and not of_torch(self._loss)
        if several and self._begin(targets) is not None:
            tensors = [x for x, used in zip(tensors, self._used, strict=True) if used]
        return [x for x in tensors if x.requires_grad]

    def _nothing(self, targets: Tensor) -> bool:
        """Return whether the loss of targets that weigh nothing is nothing too: 0, or 0 / 0."""
        if of_torch(self._loss):
            return True
        with torch.inference_mode(False), torch.no_grad():
            found = self._loss(self._made(targets, None), targets.clone())
        return bool(found == 0) or bool(found.isnan())

    def _begin(self, targets: Tensor) -> Tensor | None:
        """Return the gradient of our own sample by itself; None if none is found that counts.

        All targets of the sample are alike, so each of its positions weighs the same.
        """
        if self._target is not None:
            return self._alone
        values = (0.5, 1.0) if targets.is_floating_point() else (0, 1, 2, 3)
        for self._draw in range(3):
            for value in values:
                with torch.inference_mode(False):
                    self._target = targets.new_full((1, *targets.shape[1:]), value)
                    none = targets[:0].clone()
                try:
                    found = self._gradient(none)
                except Exception:  # a label that is none of the classes
                    continue
                if bool(found.isfinite().all()) and bool(found.any()):
                    self._alone = found
                    return found
        return None

    def _gradient(self, targets: Tensor) -> Tensor:
        """Return the gradient of the loss by the outputs of our own sample beside ``targets``."""
        assert self._target is not None
        rows: list[Tensor | None] = []
        with torch.inference_mode(False), torch.enable_grad():
            outputs = self._made(targets, rows)
            loss = self._loss(outputs, torch.cat([self._target, targets.clone()]))
            own = [row for row in rows if row is not None]
            if not own or not loss.requires_grad:
                return torch.zeros(1, dtype=torch.float64, device=targets.device)
            found = torch.autograd.grad(loss, own, allow_unused=True)
        grads = iter(found)
        self._used = [row is None or next(grads) is not None for row in rows]
        whole = (
            row.new_zeros(row.shape) if grad is None else grad
            for row, grad in zip(own, found, strict=True)
        )
        return torch.cat([grad.detach().flatten().double() for grad in whole])

    def _made(self, targets: Tensor, rows: list[Tensor | None] | None) -> Any:
        """Return outputs for ``targets``.

        With ``rows`` after those of our own sample, which are put there: of each tensor what has a
        gradient, or None.
        """
        source = torch.Generator().manual_seed(self._draw)
        count = len(targets) + (rows is not None)

        def numbers(like: Tensor, shape: tuple[int, ...]) -> Tensor:
            drawn = 0.1 + 0.8 * torch.rand(shape, generator=source, dtype=like.dtype)
            return drawn.to(targets.device)

        def made(like: Tensor) -> Tensor:
            counted = like.dim() > 0 and len(like) == self._samples
            shape = (count, *like.shape[1:]) if counted else tuple(like.shape)
            if rows is not None:
                rows.append(None)
            if not like.is_floating_point():
                return torch.full(shape, like.dtype == torch.bool).to(like.dtype).to(targets.device)
            if not counted:
                return numbers(like, shape)
            row = numbers(like, (1, *shape[1:]))
            others = numbers(like, (1, *shape[1:])).expand(len(targets), *shape[1:])
            if rows is None:
                return others.contiguous()
            rows[-1] = row.requires_grad_()
            return torch.cat([row, others])

        return over_tensors(self._outputs, made)
