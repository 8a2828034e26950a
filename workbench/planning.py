"""Make a plan: profile the workload, then let each axis of the strategy cut it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from workbench.arguments import check_accumulate
from workbench.arranging import arranged
from workbench.errors import PlanError
from workbench.limits import TooLarge, bytes_of, check_memory, nearest
from workbench.mesh import AXES, Mesh, cuts_features
from workbench.plan import Batch, LayerPlan, Plan
from workbench.strategies import OPTIONS, STRATEGIES, pipeline, replicas, sharded, spatial
from workbench.strategies.agreement import agree
from workbench.strategies.notation import parse
from workbench.strategies.obstacles import check_writes
from workbench.traced import Flat, Traced

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
    model, batch, found = _traced(work, start)
    if accumulate is None:
        accumulate = _micro_batches(start, found)
    check_accumulate(accumulate, work.batch_size)
    start = replace(start, batch=replace(start.batch, accumulate=accumulate))
    optimizer = work.make_optimizer(list(model.named_parameters()))
    start = replace(start, optimizer_state=state_of(optimizer))
    start, found = arranged(start, model, (batch,), found, compose)
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
            kind = check_loss(work, outputs_of(full, work.sample_shape, work.input_dtype))
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
    if mesh.replicas > 1:
        start = start.adding(notes=_on_samples(model, batch, found))
    start = replace(start, options=(*start.options, ("loss", kind)))
    if work.clip_norm is not None:
        start = replace(start, options=(*start.options, ("clip_norm", repr(work.clip_norm))))
    made = compose(start, found)
    check_memory(made)
    _check_shares(made, optimizer)
    if not found.plain and any(made.cuts_of(array) for array in made.outputs):
        raise PlanError(
            f"{mesh} cuts the outputs of the model, which gives {len(found.outputs)} of them, and "
            "a loss can be shared only of one. Let the model return one tensor, or use data."
        )
    return made


def _traced(work: Workload, start: Plan) -> tuple[nn.Module, Tensor, Profile]:
    """Return the model as it will compute, a batch for it, and what a pass does."""
    import torch

    from workbench.layers.precision import LOW, lower

    model, dtype = work.make_model(), getattr(torch, work.input_dtype)
    shape = (work.batch_size, *work.sample_shape)
    if not start.low:
        batch = torch.empty(shape, dtype=dtype, device="meta")
        return model, batch, trace(model, (batch,), start)
    if work.dtype != "float32":
        raise PlanError(
            f'precision="bf16" keeps weights in float32, and the workload {work.name!r} computes '
            f'in {work.dtype}; use precision="full", or a workload of dtype="float32".'
        )
    batch = torch.empty(shape, dtype=LOW if dtype.is_floating_point else dtype, device="meta")
    advice = 'let its code take the dtype of new tensors from its input, or use precision="full".'
    try:
        found = trace(lower(model), (batch,), start)
    except PlanError as error:
        trace(work.make_model(), (torch.empty(shape, dtype=dtype, device="meta"),), start)
        raise PlanError(f"The model cannot compute in bfloat16: {error} So {advice}") from error
    for layer in found.layers:
        if layer.role in ("linear", "conv") and layer.parameters and layer.arguments:
            given, own = layer.arguments[0].itemsize, layer.parameters[0].itemsize
            if given != own:
                raise PlanError(
                    f"The model cannot compute in bfloat16: its code gives layer {layer.name!r} "
                    f"numbers of {given} bytes to multiply with weights of {own}; {advice}"
                )
    return model, batch, found


def _on_samples(model: nn.Module, batch: Tensor, found: Profile) -> list[str]:
    """Return notes on what replicas do otherwise than the serial run; refuse where that is known.

    Raises
    ------
    PlanError
        If a layer's gradients depend on the whole batch.
    """
    from torch import nn

    from workbench.mixing import notes_on_samples

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq:
            raise PlanError(
                f"Layer {name!r} ({type(module).__name__}) divides its gradients by how often a "
                "row comes in the whole batch (scale_grad_by_freq), of which each replica sees a "
                "part; use scale_grad_by_freq=False, or serial."
            )
    return notes_on_samples(model, (batch,), sum(layer.forward_flops for layer in found.layers))


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


def trace(model: nn.Module, inputs: tuple[Tensor, ...], start: Plan) -> Profile:
    """Profile ``model``; with ``fallback="gather"`` layers that cannot be cut are kept whole."""
    from workbench.profile import profile

    cuts_inputs = start.mesh.degree(spatial.AXIS) > 1
    features = bool(start.mesh.feature_axes)
    dims = (0,) if features else ()
    if cuts_inputs:
        asked_for = spatial.dims_asked(start.option("spatial_dims", "largest"))
        dims = (*dims, *(asked_for or range(2, inputs[0].dim())))
    opaque: frozenset[str] = frozenset()
    while True:
        found = profile(model, *inputs, dims=dims, opaque=opaque, features=features)
        if not cuts_inputs or start.option("fallback", "refuse") != "gather":
            return found
        try:
            labels = {c.label for c in spatial.cut_labels(replace(start, inputs=found.inputs))}
        except PlanError:
            return found  # who composes the plan says so
        if any(mix.random for mix in found.mixes):
            return found  # whole arrays would not help
        wanted = {mix.layer for mix in found.mixes if labels & _plain(mix.labels)} | {
            layer.name
            for layer in found.layers
            for refusal in layer.refusals
            if layer.role != "opaque" and labels & set(refusal.labels)
        }
        if wanted <= opaque:
            return found
        opaque |= wanted


def compose(start: Plan, found: Profile) -> Plan:
    """Let every axis of the plan's mesh cut what was found, one after the other."""
    check_writes(start, found.written)
    _check_together(start.mesh)
    result = replace(
        replicas.check(start),
        layers=tuple(LayerPlan(layer) for layer in found.layers),
        inputs=found.inputs,
        outputs=found.outputs,
        mixes=found.mixes,
        units=found.units,
        adapted=found.adapted,
        exposed=tuple(dict.fromkeys((*found.exposed, *(each.name for each in found.written)))),
        resized=found.resized,
        meetings=found.meetings,
        passed=found.passed if start.stages else (),
        output_shape=found.output_shapes[0] if found.plain else (),
    )
    # Who cuts features has to know which positions ranks have.
    if start.mesh.degree(spatial.AXIS) > 1:
        result = spatial.declare(result)
    # What is left of a parameter when all others have cut it is cut over the replicas.
    last = (sharded.AXIS, pipeline.AXIS)
    for axis, degree in sorted(start.mesh.axes, key=lambda each: each[0] in last):
        if degree > 1:
            result = STRATEGIES[axis].cut(result)
    return agree(result)


def _check_together(mesh: Mesh) -> None:
    """Check that a strategy of a user's own has the features of arrays to itself."""
    own = [axis for axis, degree in mesh.axes if degree > 1 and axis not in AXES]
    others = [
        axis
        for axis, degree in mesh.axes
        if degree > 1 and axis not in own[:1] and (cuts_features(axis) or axis == spatial.AXIS)
    ]
    if own and others:
        raise PlanError(
            f"{mesh} cuts the same arrays by {own[0]} and by {others[0]}, which is not offered; "
            f"use {own[0]}={mesh.degree(own[0])} alone, or with data, sharded or pipeline."
        )


def checked_options(options: dict[str, Any]) -> dict[str, str]:
    """Return options as text; PlanError for one that no strategy has or a value that it refuses."""
    known = dict(OPTIONS)
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise PlanError(f"There is no option {name!r}; there are: {', '.join(known)}.")
        if known[name] and str(value) not in known[name]:
            allowed = " or ".join(repr(v) for v in known[name])
            raise PlanError(f"Option {name}={value!r} is not one of its choices: {allowed}.")
        checked[name] = str(value)
    spatial.dims_asked(checked.get("spatial_dims", "largest"))
    if limit := checked.get("memory_limit"):
        bytes_of(limit)
    return checked


def _plain(labels: tuple[str | Flat, ...]) -> set[str]:
    return {label for label in labels if isinstance(label, str)}


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
            f"data={mesh.degree('data')} cuts the batch, but for {batch_size} samples the "
            f"model gives "
            f"an output of shape {wrong[0]}, whose dim 0 does not count them. Use serial, or let "
            f"the model return one row per sample."
        )
