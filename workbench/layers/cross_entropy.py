"""Cross-entropy of outputs whose classes ranks have shares of: no rank has them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.comm.comm import Comm
from workbench.layers.groups import Groups
from workbench.losses import cross_entropy_options
from workbench.plan import Plan
from workbench.windows import Run

Loss = Callable[[Tensor, Tensor], Tensor]
Note = Callable[[Tensor, Tensor, int, Tensor], None]


def shared_loss(loss: Loss, plan: Plan, groups: Groups, note: Note) -> Loss:
    """Return ``loss``, or what computes it of the rank's share of the classes if they are cut.

    Then ``note`` is told how far the output for each target lies from the largest of all classes,
    0 or less (of one that is left out 0); the sum of all classes' exponentials, that of the largest
    being 1; the number of classes; and the targets.
    """
    if not plan.class_cuts:
        return loss
    options = cross_entropy_options(loss)
    assert options is not None  # else the plan would leave classes whole
    dim, axis = plan.loss_dim, plan.class_cuts[0].axis
    made = plan.outputs[0]
    classes = plan.share(made.shape, plan.class_cuts, groups.rank)[dim]
    layers = [c.name.rpartition(":")[0] for c in plan.collectives if c.name.endswith(" of classes")]
    names = (f"{layers[0]}: largest of classes", f"{layers[0]}: sums of classes")
    comm = groups.over(axis)

    def shared(output: Tensor, targets: Tensor) -> Tensor:
        own = output.movedim(dim, -1).reshape(-1, output.shape[dim])
        if own.dtype in (torch.bfloat16, torch.float16):
            own = own.float()  # as autocast has it for the whole loss
        own_options = _Options(classes, made.shape[dim], comm, names, note, **options)
        result: Tensor = _CrossEntropy.apply(own, targets.reshape(-1), own_options)
        return result

    return shared


class _Options:
    """What is known of the loss besides outputs and targets; fields are torch's where they can."""

    def __init__(
        self,
        classes: Run,
        count: int,
        comm: Comm,
        names: tuple[str, str],
        note: Note,
        *,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> None:
        self.start, self.stop = classes
        self.count, self.comm, self.names = count, comm, names
        self.weight, self.ignored, self.reduction = weight, ignore_index, reduction
        self.smoothing, self.note = label_smoothing, note


class _CrossEntropy(torch.autograd.Function):
    """As ``torch.nn.functional.cross_entropy``, of (rows, own classes) and (rows) labels.

    Every rank returns the loss. Each counts for its part of it, so backward adds up what all ranks
    say of the loss, which is the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, how: _Options) -> Tensor:
        comm, (largest_name, sums_name) = how.comm, how.names
        largest = x.amax(1) if x.shape[1] else x.new_full((len(x),), -torch.inf)
        largest = comm.all_reduce(largest, "max", name=largest_name)
        # A row that is infinite throughout is no number, as torch has it.
        shifted = x - largest.unsqueeze(1)
        counted = targets != how.ignored
        here = counted & (targets >= how.start) & (targets < how.stop)
        place = (targets - how.start).where(here, 0).unsqueeze(1)
        weight = None if how.weight is None else how.weight.to(x)
        own_weight = None if weight is None else weight[how.start : how.stop]
        exponentials = shifted.exp()
        chosen = shifted.gather(1, place).squeeze(1) if x.shape[1] else x.new_zeros(len(x))
        sums = [exponentials.sum(1), chosen.where(here, 0)]
        if how.smoothing:
            sums.append(shifted.sum(1) if own_weight is None else shifted @ own_weight)
        summed = comm.all_reduce(torch.stack(sums), name=sums_name)
        how.note(summed[1], summed[0], how.count, targets)
        logarithms = summed[0].log()
        safe = targets.where(counted, 0)
        row_weight = counted.to(x) if weight is None else weight[safe].where(counted, 0)
        total = float(how.count) if weight is None else weight.sum()
        rows = (logarithms - summed[1]) * row_weight * (1 - how.smoothing)
        if how.smoothing:
            smooth = (total * logarithms - summed[2]) * (how.smoothing / how.count)
            rows = rows + smooth.where(counted, 0)
        rows = rows.where(counted, 0)
        divisor = row_weight.sum() if how.reduction == "mean" else torch.ones_like(rows.sum())
        ctx.how, ctx.total = how, total
        ctx.save_for_backward(
            exponentials.div_(summed[0].unsqueeze(1)),
            place,
            here,
            counted.to(x),
            row_weight,
            divisor,
        )
        return rows.sum() / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        share, place, here, counted, row_weight, divisor = ctx.saved_tensors
        how: _Options = ctx.how
        scale = grads[0] * how.comm.size / divisor
        by_row = row_weight * (1 - how.smoothing)
        part = how.smoothing / how.count
        result = share * (by_row + part * ctx.total * counted).unsqueeze(1)
        if how.smoothing:
            each = part if how.weight is None else part * how.weight[how.start : how.stop].to(share)
            result -= each * counted.unsqueeze(1)
        if share.shape[1]:
            result.scatter_add_(1, place, -by_row.where(here, 0).unsqueeze(1))
        return result.mul_(scale), None, None
