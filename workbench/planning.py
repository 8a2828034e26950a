"""Make a plan: profile the workload, then let each axis of the strategy cut it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from workbench.arguments import check_accumulate
from workbench.arranging import arranged
from workbench.composing import attempt, compose, trace
from workbench.errors import PlanError
from workbench.given import listed, titles
from workbench.limits import TooLarge, bytes_of, check_memory, nearest
from workbench.mesh import BATCH_AXES, Mesh
from workbench.nearest import Undivided, instead
from workbench.plan import Batch, Plan
from workbench.strategies import (
    STRATEGIES,
    choices,
    pipeline,
    spatial_dims,
)
from workbench.strategies.notation import parse
from workbench.strategies.obstacles import advised
from workbench.traced import Flat, Mix, Traced

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workbench.profile import Profile
    from workbench.workload import Workload


def plan(
    work: Workload,
    strategy: str = "serial",
    *,
    accumulate: int | None = None,
    **options: Any,
) -> Plan:
    """Apply ``strategy`` to ``work``; nothing is started.

    Nothing of the data is computed; where code may mix samples, a few made-up ones try it.

    Parameters
    ----------
    strategy:
        ``"serial"``, or degrees on axes: ``"data=2"``, ``"spatial=2x2"``.
    accumulate:
        Micro-batches per step, whose gradients are added up before the update. If left out: one,
        or for a pipeline four for each of its ranks, unless BatchNorm would see the difference.
    options:
        ``precision="bf16"``, and stated choices of the strategies, such as ``batch_norm="local"``,
        ``compression="powersgd"``, ``sync_every=8``, ``spatial_dims=3`` or ``fallback="gather"``.

    Raises
    ------
    PlanError
        If it cannot be done: says what was asked, the constraint, the numbers, and what works.
    """
    from workbench.inputs import check_workload

    if work not in _made:
        check_workload(work)  # once: it copies the model, and makes it into bytes
    made = _made.setdefault(work, {})
    stated = repr(sorted(options.items())), *(each.cut for each in STRATEGIES.values())
    found = made.get((repr(strategy), accumulate, stated))
    if found is None:
        try:
            found = _plan(work, strategy, accumulate=accumulate, **options)
        except TooLarge as error:
            use = nearest(partial(_plan, work), strategy, accumulate, options)
            raise PlanError(f"{error}; use {use}.") from None
        except Undivided as error:

            def attempt(other: str, chosen: Mapping[str, Any]) -> Plan:
                return _plan(work, other, accumulate=accumulate, **chosen)

            use = instead(attempt, str(parse(strategy)), options, error)
            raise PlanError(f"{error}; use {use}.") from None
        for micro in (accumulate, found.batch.accumulate):
            made[repr(strategy), micro, stated] = found
    return found


_Asked = tuple[str, int | None, tuple[Any, ...]]
_made: WeakKeyDictionary[Workload, dict[_Asked, Plan]] = WeakKeyDictionary()
"""Plans, which depend on nothing that changes: a run, and another that goes on from it, have one.

They are gone with their workload.
"""


def _plan(work: Workload, strategy: str, *, accumulate: int | None, **options: Any) -> Plan:
    import torch

    from workbench.inputs import check_loss
    from workbench.losses import shared_class_dim, smooths_labels
    from workbench.optimizers import state_of
    from workbench.profile import outputs_of
    from workbench.trials import like

    mesh = parse(strategy)
    chosen = checked_options(options)
    start = Plan(
        workload=work.name,
        batch=Batch(work.batch_size, work.samples),
        layers=(),
        mesh=mesh,
        options=tuple(chosen.items()),
    )
    if idle := choices.without_effect(chosen, mesh):
        start = start.adding(notes=[idle])
    model, batch, found = _traced(work, start)
    if accumulate is None:
        accumulate = _micro_batches(start, found)
    check_accumulate(accumulate, work.batch_size)
    start = replace(start, batch=replace(start.batch, accumulate=accumulate))
    if mesh.size > 1 or accumulate > 1:
        _check_hooks(work)
    optimizer = work.make_optimizer(list(model.named_parameters()))
    start = replace(start, optimizer_state=state_of(optimizer))
    tried = partial(attempt, model, batch)
    with advised(start, tried):
        start, found = arranged(start, model, batch, found, compose)
    check_outputs(found.output_shapes, work.batch_size, mesh)
    if found.plain:
        kind = check_loss(work, like(found.output_shapes[0][1:], work.dtype))
        start = replace(start, targets=_targets(work, found.outputs[0], kind))
        sizes = (found.output_shapes[0], (work.batch_size, *work.target_shape))
        start = replace(start, loss_dim=shared_class_dim(work.loss, *sizes, work.target_dtype))
        if start.loss_dim and smooths_labels(work.loss):
            start = replace(start, options=(*start.options, ("smoothed_labels", "yes")))
    else:
        try:
            full = work.make_model() if start.low else model  # a loss is given float32
            kind = check_loss(work, outputs_of(full, work.sample_shapes, work.input_dtypes))
        except PlanError as error:
            if mesh.size > 1 or accumulate > 1:
                raise
            kind = "mean"  # nothing is cut, and made-up outputs may mean nothing to the loss
            note = f"{error} Serial needs no shares of it; it is scored as a mean over samples."
            start = start.adding(notes=[note])
    if mesh.size > 1 and isinstance(optimizer, torch.optim.SparseAdam):
        raise PlanError(
            f"{mesh} adds up dense gradients, and SparseAdam takes only sparse ones; use serial, "
            "or torch.optim.Adam."
        )
    start = start.adding(notes=_on_samples(work, start, model, batch, found))
    start = replace(start, options=(*start.options, ("loss", kind)))
    if work.clip_norm is not None:
        start = replace(start, options=(*start.options, ("clip_norm", repr(work.clip_norm))))
    with advised(start, tried):
        made = compose(start, found)
    check_memory(made)
    _check_shares(made, optimizer)
    if not found.plain and any(made.cuts_of(array) for array in made.outputs):
        raise PlanError(
            f"{mesh} cuts the outputs of the model, which gives {len(found.outputs)} of them, and "
            "a loss can be shared only of one. Let the model return one tensor, or use data."
        )
    return made


def _traced(work: Workload, start: Plan) -> tuple[nn.Module, tuple[Tensor, ...], Profile]:
    """Return the model as it will compute, a batch for it, and what a pass does."""
    import torch

    from workbench.layers.precision import LOW, lower

    model = work.make_model()
    batch = tuple(
        torch.empty((work.batch_size, *shape), dtype=getattr(torch, dtype), device="meta")
        for shape, dtype in zip(work.sample_shapes, work.input_dtypes, strict=True)
    )
    if not start.low:
        try:
            return model, batch, trace(model, batch, start)
        except PlanError as error:
            real = _rather_real(work, model, batch, start)
            if not real:
                raise
            raise PlanError(
                f"{error} Among several inputs whole numbers stay whole; give {listed(real)} as "
                f"real numbers, with .astype({work.dtype!r})."
            ) from error
    if work.dtype != "float32":
        raise PlanError(
            f'precision="bf16" keeps weights in float32, and the workload {work.name!r} computes '
            f'in {work.dtype}; use precision="full", or a workload of dtype="float32".'
        )
    lowered = tuple(x.to(LOW) if x.is_floating_point() else x for x in batch)
    advice = 'let its code take the dtype of new tensors from its input, or use precision="full".'
    try:
        found = trace(lower(model), lowered, start)
    except PlanError as error:
        trace(work.make_model(), batch, start)
        raise PlanError(f"The model cannot compute in bfloat16: {error} So {advice}") from error
    for layer in found.layers:
        if layer.role in ("linear", "conv") and layer.parameters and layer.arguments:
            given, own = layer.arguments[0].itemsize, layer.parameters[0].itemsize
            if given != own:
                raise PlanError(
                    f"The model cannot compute in bfloat16: its code gives layer {layer.name!r} "
                    f"numbers of {given} bytes to multiply with weights of {own}; {advice}"
                )
    return model, lowered, found


def _rather_real(
    work: Workload, model: nn.Module, batch: tuple[Tensor, ...], start: Plan
) -> list[str]:
    """Return which of several inputs the model would take as real numbers, not as whole ones."""
    import torch

    whole = [place for place, x in enumerate(batch) if x.dtype == torch.int64]
    said = titles(len(batch), work.input_names)
    for places in [[place] for place in whole] + [whole] if len(batch) > 1 else []:
        dtypes = {place: getattr(torch, work.dtype) for place in places}
        try:
            trace(model, tuple(x.to(dtypes.get(n, x.dtype)) for n, x in enumerate(batch)), start)
        except PlanError:
            continue
        return [said[place] for place in places]
    return []


_hooked: WeakKeyDictionary[Workload, str] = WeakKeyDictionary()
"""The parameter of a workload's model whose gradient has a hook; empty if there is none."""


def _check_hooks(work: Workload) -> None:
    """Check that no gradient of a parameter has a hook, which would see a part of it."""
    from workbench.recipe import hooked

    if work not in _hooked:
        _hooked[work] = hooked(work.make_model())
    if _hooked[work]:
        raise PlanError(
            f"The gradient of {_hooked[work]!r} has a hook, which would see the part of a rank or "
            "of a micro-batch; use serial with accumulate=1, or have the optimizer do what it does."
        )


_mixes: WeakKeyDictionary[Workload, tuple[Mix, ...]] = WeakKeyDictionary()
"""What a model's code mixes and draws, which is the same for every plan."""


def _on_samples(
    work: Workload, start: Plan, model: nn.Module, batch: tuple[Tensor, ...], found: Profile
) -> list[str]:
    """Return notes on what parts of a batch do otherwise than the whole; refuse where it is known.

    Raises
    ------
    PlanError
        If a layer's gradients depend on the whole batch.
    """
    from torch import nn

    from workbench.mixing import mixes_of, notes_on_samples, parts_of

    parts = parts_of(start)
    if not parts:
        return []
    for name, module in model.named_modules():
        counts = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq
        if counts and (start.mesh.replicas > 1 or start.batch.accumulate > 1):
            raise PlanError(
                f"Layer {name!r} ({type(module).__name__}) divides its gradients by how often a "
                "row comes in the whole batch (scale_grad_by_freq), of which each replica or "
                "micro-batch sees a part; use scale_grad_by_freq=False, or serial with "
                "accumulate=1."
            )
    flops = sum(layer.forward_flops for layer in found.layers)
    if work not in _mixes:
        _mixes[work] = mixes_of(model, batch)
    return notes_on_samples(model, batch, _mixes[work], flops, parts)


def _micro_batches(start: Plan, found: Profile) -> int:
    """Return how many micro-batches a step has if the user does not say."""
    ranks = start.mesh.degree(pipeline.AXIS)
    if ranks == 1 or any(layer.batch_statistics for layer in found.layers):
        return 1
    most = max(1, start.batch.size // start.mesh.replicas)
    return min(most, pipeline.MICRO_BATCHES_PER_RANK * ranks)


def _check_shares(made: Plan, optimizer: Optimizer) -> None:
    """Check that ranks can update their shares of parameters by themselves."""
    from workbench.optimizers import updates_by_entry

    cut = [array.name for array in made.arrays if made.parameter_cuts(array.name)]
    cut += [name for name, _ in made.updates]
    if cut and not updates_by_entry(optimizer):
        raise PlanError(
            f"{made.mesh} gives ranks shares of parameters such as {cut[0]!r}, and "
            f"{type(optimizer).__name__} updates a parameter as a whole; use data={made.ranks}, or "
            "an optimizer that treats every entry alike, such as SGD or AdamW."
        )


def checked_options(options: dict[str, Any]) -> dict[str, str]:
    """Return options as text, but for those that are None.

    Raises
    ------
    PlanError
        For one that no strategy has or a value that it refuses.
    """
    checked = {
        name: choices.checked(name, value) for name, value in options.items() if value is not None
    }
    spatial_dims.dims_asked(checked.get("spatial_dims", "largest"))
    if limit := checked.get("memory_limit"):
        bytes_of(limit)
    return checked


def _targets(work: Workload, output: Traced, kind: str) -> Traced:
    """Return the targets of a batch; a dim is labelled as the output's if the loss splits there."""
    from workbench.trials import splits_along

    shape = (work.batch_size, *work.target_shape)
    labels: list[str | Flat] = [""] * len(shape)
    for dim, label in enumerate(output.labels):
        own = dim - len(output.shape) + len(shape)
        fits = 0 < own < len(shape) and shape[own] == output.shape[dim]
        if (
            label
            and fits
            and splits_along(
                work.loss,
                output.shape[1:],
                work.target_shape,
                work.target_dtype,
                work.dtype,
                (dim - 1, own - 1),
                kind,
            )
        ):
            labels[own] = label
    return Traced(shape, tuple(labels), work.y.dtype.itemsize, gradient=False)


def check_outputs(shapes: tuple[tuple[int, ...], ...], batch_size: int, mesh: Mesh) -> None:
    """Check that outputs go with samples, one by one, where the batch is to be cut."""
    wrong = [shape for shape in shapes if shape[:1] != (batch_size,)]
    if wrong and mesh.replicas > 1:
        raise PlanError(
            f"{mesh.along(*BATCH_AXES)} cuts the batch, but for {batch_size} samples the "
            f"model gives an output of shape {wrong[0]}, whose dim 0 does not count them. Use "
            f"serial, or let the model return one row per sample."
        )
