"""Loss and accuracy on data that is spread over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.cluster.context import RankContext
from workbench.comm.comm import Comm
from workbench.divisors import Divisor
from workbench.given import inputs_among
from workbench.losses import class_dim, ignored_label, on_device
from workbench.mesh import balanced
from workbench.plan import Plan
from workbench.recipe import load_payload

BATCH = 256
"""Samples in one forward pass; for large samples fewer, see :func:`score`."""
_BATCH_BYTES = 16 * 2**20
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Score:
    """How good a model is on some data.

    Attributes
    ----------
    loss:
        Mean (or sum, as the workload's loss says) over all samples. Of a loss that divides by
        several numbers, the mean over the batches that are scored.
    accuracy:
        Share of targets whose largest output is the right one, of those that the loss does not
        leave out; None where targets are no classes.
    samples:
        Number of samples over all ranks.
    confusion:
        Of classes: how many targets of each (rows) were taken for which (columns), those aside that
        the loss leaves out; None for more than 1,000 classes.
    """

    loss: float
    accuracy: float | None
    samples: int
    confusion: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ScoreJob:
    """Score the state that lies in the rank's arrays as ``parameter:NAME`` and ``buffer:NAME``."""

    payload: bytes
    plan: Plan


def score_state(context: RankContext, job: ScoreJob) -> Score:
    """Make the model, give it the state and score it; what every rank runs for an evaluation."""
    recipe = load_payload(job.payload)
    model = recipe.make_model()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, array in context.arrays.items():
            if ":" in name:
                state[name.partition(":")[2]].copy_(torch.from_numpy(np.array(array)))
    return score(
        model.to(context.device),
        on_device(recipe.loss, context.device),
        job.plan.option("loss", "mean"),
        context.arrays,
        context.comm,
        context.device,
    )


def score(
    model: nn.Module,
    loss: Callable[..., Tensor],
    kind: str,
    arrays: Mapping[str, np.ndarray],
    comm: Comm,
    device: torch.device,
) -> Score:
    """Score ``model`` on ``test_x`` (and ``test_x[1]`` ...) and ``test_y`` of all ranks together.

    Every rank calls this.

    ``kind`` says how ``loss`` sums over samples: "mean", "sum" or "weighted". Ranks may hold
    different numbers of samples, or none. The model is set to eval mode and then back.
    """
    given, y = inputs_among(arrays, "test_"), arrays["test_y"]
    per_pass = max(1, min(BATCH, _BATCH_BYTES // max(1, sum(x[:1].nbytes for x in given))))
    marks = Marks(loss, kind)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        passes = -(-len(y) // per_pass)
        for part in (slice(*balanced(len(y), passes, number)) for number in range(passes)):
            *inputs, targets = (torch.from_numpy(np.array(a[part])).to(device) for a in (*given, y))
            marks.add(model(*inputs), targets)
    model.train(was_training)
    marks.sums = comm.all_reduce(marks.sums.to(comm.device_type), name="score")
    classes = torch.tensor([float(marks.classes)], device=comm.device_type)
    marks.widen(int(comm.all_reduce(classes, "max", name="number of classes")))
    if marks.confusion is not None:
        table = marks.confusion.clone().to(comm.device_type)  # outside of inference mode
        marks.confusion = comm.all_reduce(table, name="confusion table")
    return marks.score()


class Marks:
    """What is known of how good a model is, batch by batch.

    Attributes
    ----------
    sums:
        Loss times weight, weight, right targets, targets that count, samples.
    confusion:
        How often each class (rows) was taken for which (columns); None until there are classes.
    """

    def __init__(self, loss: Callable[..., Tensor], kind: str) -> None:
        self.loss, self.kind = loss, kind
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.confusion: Tensor | None = None
        self._dim, self._ignored = class_dim(loss), ignored_label(loss)

    @property
    def classes(self) -> int:
        """Number of classes; 0 where there are none, or more than a table should have."""
        return 0 if self.confusion is None else len(self.confusion)

    def add(self, outputs: Any, targets: Tensor) -> None:
        """Take in the outputs for some samples."""
        weight = _weight(self.loss, self.kind, outputs, targets)
        if weight:
            self.sums[0] += float(self.loss(outputs, targets)) * weight
            self.sums[1] += weight
        self.sums[4] += len(targets)
        found = predicted(outputs, targets, self._dim)
        if found is None:
            return
        labels, classes = found
        counted = torch.ones_like(targets, dtype=torch.bool)
        if self._ignored is not None:
            counted = targets != self._ignored
        self.sums[2] += float(((labels == targets) & counted).sum())
        self.sums[3] += float(counted.sum())
        self.widen(classes)
        if self.confusion is not None:
            counted &= (targets >= 0) & (targets < classes)
            cells = targets[counted].long() * classes + labels[counted]
            table = torch.bincount(cells.flatten(), minlength=classes * classes).cpu()
            self.confusion += table.view(classes, classes)

    def widen(self, classes: int) -> None:
        """Have a table for so many classes, if that is not too many."""
        if self.confusion is None and 0 < classes <= MOST_CLASSES:
            self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def merge(self, other: Marks) -> None:
        """Take in what is known of other samples."""
        self.sums = self.sums + other.sums
        if other.confusion is not None:
            self.widen(other.classes)
            assert self.confusion is not None
            self.confusion = self.confusion + other.confusion

    def score(self) -> Score:
        """Return what it comes to."""
        total, weights, right, judged, samples = self.sums.tolist()
        mean = total if self.kind == "sum" or not weights else total / weights
        table = None if self.confusion is None else self.confusion.cpu().numpy()
        return Score(mean, right / judged if judged else None, int(samples), table)


def predicted(
    outputs: object, targets: Tensor, class_dim: int | None = None
) -> tuple[Tensor, int] | None:
    """Return the class with the largest output for each target, and the number of classes.

    None where that means nothing; ``class_dim`` as for :func:`classes_in`.
    """
    dim = classes_in(outputs, targets, class_dim)
    if dim is None or not isinstance(outputs, Tensor):
        return None
    return outputs.argmax(dim), outputs.shape[dim]


def classes_in(outputs: object, targets: Tensor, class_dim: int | None = None) -> int | None:
    """Return the dim of ``outputs`` that counts classes; None where there are none.

    It is ``class_dim``, as the loss has it; where the loss does not tell, dim 1, as torch's cross
    entropy has it, or the last dim.
    """
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        return None
    if outputs.dim() != targets.dim() + 1:
        return None
    dims = (1, outputs.dim() - 1) if class_dim is None else (class_dim % outputs.dim(),)
    for dim in dims:
        rest = outputs.shape[:dim] + outputs.shape[dim + 1 :]
        if rest == targets.shape:
            return dim
    return None


def _weight(loss: Callable[..., Tensor], kind: str, outputs: Any, targets: Tensor) -> float:
    if kind == "sum":
        return 1.0
    if kind == "weighted":
        found = Divisor(loss, outputs, len(targets)).find(targets)
        if found is not None:
            return found
    return float(len(targets))
