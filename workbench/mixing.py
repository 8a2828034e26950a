"""Code in a model that mixes the samples of a batch, or draws random numbers of its own.

Replicas and micro-batches are a part of the samples each, so that such code gives them something
else than one pass over the batch. Stages of a pipeline draw by themselves. Layers that know of
other ranks, as BatchNorm and Dropout do, answer for themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from workbench.generators import set_aside
from workbench.nested import tensors_in
from workbench.plan import Plan
from workbench.profile import profile
from workbench.traced import SAMPLES, Mix

_MOST_FLOPS = 1e11
_TOLERANCE = 1e-3


def parts_of(plan: Plan) -> tuple[str, ...]:
    """Return what the parts are called in which ``plan`` takes a batch through the model."""
    named = {
        "replica": plan.mesh.replicas > 1,
        "stage": plan.mesh.degree("pipeline") > 1,
        "micro-batch": plan.batch.accumulate > 1,
    }
    return tuple(name for name, there in named.items() if there)


def mixes_of(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Mix, ...]:
    """Return what code of ``model`` mixes samples of a batch or draws, given on the meta device."""
    return profile(model, *inputs, dims=(0,)).mixes


def notes_on_samples(
    model: nn.Module,
    inputs: Sequence[Tensor],
    mixes: Sequence[Mix],
    flops: float,
    parts: Sequence[str],
) -> list[str]:
    """Return why ``model`` in parts does not compute what one pass does; mostly nothing.

    Parameters
    ----------
    inputs:
        A whole batch, on the meta device.
    mixes:
        What :func:`mixes_of` gives for them.
    flops:
        Of a forward pass over it.
    parts:
        Those that the plan has, see :func:`parts_of`.
    """
    only_micro = tuple(parts) == ("micro-batch",)
    other = "one pass over the whole batch" if only_micro else "the serial run"
    several = " and ".join(f"{part}{'es' if part.endswith('ch') else 's'}" for part in parts)
    found = [
        f"{_where(mix)} draws {mix.operation.partition(', and every')[0]} of its own: {several} "
        f"have other ones than {other}, so that the result is not the same number by number"
        for mix in mixes
        if mix.random
    ]
    suspects = [mix for mix in mixes if SAMPLES in mix.labels and not mix.random]
    each = [part for part in parts if part != "stage"]  # a stage has all samples
    if suspects and each and not found and _parts_differ(model, inputs, flops):
        # Of several suspects nobody knows which it is.
        what = ", or ".join(
            dict.fromkeys(f"{_where(mix)} ({_said(mix.operation)})" for mix in suspects[:3])
        )
        found.append(
            f"code mixes the samples of a batch: {what}; each {each[-1]} mixes its own ones, so "
            f"that the result is not that of {other}"
        )
    return list(dict.fromkeys(found))


def _where(mix: Mix) -> str:
    return f"layer {mix.layer!r} ({mix.kind})" if mix.layer else f"{mix.kind}.forward"


def _said(operation: str) -> str:
    return operation.replace("dim 0", "the samples")


def _parts_differ(model: nn.Module, inputs: Sequence[Tensor], flops: float) -> bool:
    """Return whether a few samples give something else together than in two parts.

    Labels tell where samples may be mixed, and see no difference between a loop over samples and
    a sum; so a few made-up samples are tried. What cannot be tried is not known to be equal.
    """
    batch, few = inputs[0].shape[0], min(4, inputs[0].shape[0])
    if few < 2 or flops * 2 * few / batch > _MOST_FLOPS:
        return True
    tried = copy.deepcopy(model).float()
    for module in tried.modules():
        if isinstance(module, _BatchNorm | _DropoutNd | nn.RNNBase | nn.MultiheadAttention):
            module.eval()  # they answer for themselves
    source = torch.Generator().manual_seed(0)
    made = [_made_up(x, few, source) for x in inputs]
    try:
        with torch.no_grad(), set_aside():
            whole, *parts = (
                tensors_in(tried(*(x[rows] for x in made)))
                for rows in (slice(None), slice(few // 2), slice(few // 2, None))
            )
            for together, *apart in zip(whole, *parts, strict=True):
                if together.shape[:1] != (few,):
                    continue  # whoever puts outputs together refuses this one
                joined = torch.cat(apart)
                # A made-up mask may leave a sample nothing, which is no number either way.
                known = ~(joined.isnan() & together.isnan())
                gap = (joined - together)[known].abs().max()
                if not gap <= _TOLERANCE * together[known].abs().max():
                    return True
    except Exception:
        return True
    return False


def _made_up(x: Tensor, rows: int, source: torch.Generator) -> Tensor:
    shape = (rows, *x.shape[1:])
    if x.is_floating_point():
        return torch.randn(shape, generator=source)
    return torch.randint(2, shape, generator=source, dtype=x.dtype)
