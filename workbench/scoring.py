"""Loss and accuracy on data that is spread over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workbench.cluster.context import RankContext
from workbench.comm.comm import Comm
from workbench.losses import class_dim, ignored_label, loss_weight, on_device
from workbench.mesh import balanced
from workbench.plan import Plan
from workbench.recipe import load_payload

BATCH = 256
"""Samples in one forward pass; for large samples fewer, see :func:`score`."""
_BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Score:
    """How good a model is on some data.

    Attributes
    ----------
    loss:
        Mean (or sum, as the workload's loss says) over all samples.
    accuracy:
        Share of targets whose largest output is the right one, of those that the loss does not
        leave out; None where targets are no classes.
    samples:
        Number of samples over all ranks.
    """

    loss: float
    accuracy: float | None
    samples: int


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
    """Score ``model`` on ``test_x`` and ``test_y`` of all ranks; every rank calls this.

    ``kind`` says how ``loss`` sums over samples: "mean", "sum" or "weighted". Ranks may hold
    different numbers of samples, or none. The model is set to eval mode and then back.
    """
    x, y = arrays["test_x"], arrays["test_y"]
    per_pass = max(1, min(BATCH, _BATCH_BYTES // max(1, x[:1].nbytes)))
    sums = torch.zeros(5, dtype=torch.float64)  # loss, weight, right, judged, samples
    dim, ignored = class_dim(loss), ignored_label(loss)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        passes = -(-len(x) // per_pass)
        for part in (slice(*balanced(len(x), passes, number)) for number in range(passes)):
            inputs, targets = (torch.from_numpy(np.array(a[part])).to(device) for a in (x, y))
            outputs = model(inputs)
            weight = _weight(loss, kind, targets)
            if weight:
                sums[0] += float(loss(outputs, targets)) * weight
                sums[1] += weight
            right = correct(outputs, targets, dim)
            if right is not None:
                judged_here = targets != ignored if ignored is not None else torch.ones_like(right)
                sums[2] += float((right & judged_here).sum())
                sums[3] += float(judged_here.sum())
            sums[4] += len(inputs)
    model.train(was_training)
    sums = comm.all_reduce(sums.to(comm.device_type), name="score")
    total, weights, right_count, judged, samples = sums.tolist()
    mean = total if kind == "sum" or not weights else total / weights
    return Score(mean, right_count / judged if judged else None, int(samples))


def correct(outputs: object, targets: Tensor, class_dim: int | None = None) -> Tensor | None:
    """Return which targets have the largest output, or None where that means nothing.

    Classes are in ``class_dim`` of the outputs, as the loss has them; where the loss does not tell,
    in dim 1, as torch's cross entropy has them, or in the last dim.
    """
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        return None
    if outputs.dim() != targets.dim() + 1:
        return None
    dims = (1, outputs.dim() - 1) if class_dim is None else (class_dim % outputs.dim(),)
    for dim in dims:
        rest = outputs.shape[:dim] + outputs.shape[dim + 1 :]
        if rest == targets.shape:
            return outputs.argmax(dim) == targets
    return None


def _weight(loss: Callable[..., Tensor], kind: str, targets: Tensor) -> float:
    if kind == "sum":
        return 1.0
    if kind == "weighted":
        return float(loss_weight(loss, targets))
    return float(len(targets))
