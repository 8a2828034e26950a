"""Prove that a strategy gives the serial result: ranks as threads of this process, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from workbench.arranging import arranged
from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.composing import attempt, compose, trace
from workbench.errors import PlanError
from workbench.layers.channels import own_part
from workbench.layers.gradients import GradientBuckets
from workbench.layers.groups import Groups, parts_of
from workbench.layers.pipeline import Pipeline
from workbench.layers.share import Share
from workbench.layers.swap import parallelize
from workbench.layers.trace import Trace
from workbench.layers.weight_gradients import WeightGradients
from workbench.mesh import Mesh, balanced
from workbench.nearest import Undivided, instead
from workbench.nested import tensors_in
from workbench.plan import Batch, Collective, Cut, Plan
from workbench.planning import checked_options
from workbench.profile import Profile
from workbench.schedules import SCHEDULES
from workbench.strategies import replicas
from workbench.strategies.notation import parse
from workbench.strategies.obstacles import advised
from workbench.traced import Traced

if TYPE_CHECKING:
    from workbench.workload import Workload

TOLERANCE = 1e-10
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Proof:
    """Largest absolute differences to the serial result, in float64; or why it was refused.

    ``outputs``, ``input_gradients``, ``parameter_gradients`` and ``buffers`` are None where there
    is nothing to compare, or nothing was compared because of ``refusal``. ``sent_bytes`` is what
    each rank sent, and ``predicted_bytes`` what the plan said it would.
    """

    strategy: str
    ranks: int
    outputs: float | None = None
    input_gradients: float | None = None
    parameter_gradients: float | None = None
    buffers: float | None = None
    refusal: str | None = None
    predicted_bytes: tuple[int, ...] = ()
    sent_bytes: tuple[int, ...] = ()

    @property
    def max_difference(self) -> float | None:
        """The largest of all differences."""
        parts = (self.outputs, self.input_gradients, self.parameter_gradients, self.buffers)
        return max((p for p in parts if p is not None), default=None)

    @property
    def same_result(self) -> bool:
        """Whether everything was compared and differs by no more than rounding (1e-10)."""
        return self.max_difference is not None and self.max_difference <= TOLERANCE

    def __str__(self) -> str:
        """Say it in one sentence."""
        if self.refusal:
            return f"{self.strategy}: refused. {self.refusal}"
        ranks = f"{self.ranks} rank{'' if self.ranks == 1 else 's'}"
        if self.max_difference is None:
            return f"{self.strategy} on {ranks}: there is nothing to compare"
        word = "same result as serial" if self.same_result else "NOT the serial result"
        gap = f"max difference {self.max_difference:.2g}"
        return f"{self.strategy} on {ranks}: {word}, {gap}"


@dataclass
class _Part:
    """What one rank has computed."""

    outputs: list[Tensor]
    input_gradients: list[Tensor | None]
    parameter_gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    sent_bytes: int


def verify(module: nn.Module, *inputs: Tensor, strategy: str, **options: Any) -> Proof:
    """Compare one forward and backward pass of ``module`` under ``strategy`` with the serial one.

    Runs on copies in float64, on the CPU, with a random gradient at every output.

    Parameters
    ----------
    inputs:
        Tensors for ``module(*inputs)``, samples in dim 0.
    strategy:
        As for :func:`workbench.plan`, and so are ``options``; a refusal is returned, not raised.

    Raises
    ------
    PlanError
        If the strategy or an option is not one, or the module does not take the inputs.
    """
    mesh = parse(strategy)
    chosen = checked_options(options)
    _check_exact(chosen)
    _check_module(module, inputs)
    module = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
    values = [_double(x) for x in inputs]
    batch = next((x.shape[0] for x in values if x.dim()), 0)

    def begun(asked: str, options: Mapping[str, Any]) -> tuple[Plan, Profile]:
        start = Plan(
            workload=type(module).__name__,
            batch=Batch(max(1, batch), max(1, batch)),
            layers=(),
            mesh=parse(asked),
            options=tuple(checked_options(dict(options)).items()),
        )
        return start, trace(module, tuple(map(_leaf, values)), start)

    def planned(start: Plan, found: Profile) -> tuple[Plan, Profile]:
        arrays = tuple(map(_leaf, values))
        with advised(start, partial(attempt, module, arrays)):
            divided, found = arranged(start, module, arrays, found, compose)
            return compose(divided, found), found

    start, found = begun(strategy, chosen)
    try:
        plan, found = planned(start, found)
    except Undivided as error:
        use = instead(lambda other, free: planned(*begun(other, free)), str(mesh), chosen, error)
        return Proof(strategy, mesh.size, refusal=f"{error}; use {use}.")
    except PlanError as refusal:
        return Proof(strategy, mesh.size, refusal=str(refusal))
    if any(shape[:1] != (batch,) for shape in found.output_shapes) and mesh.replicas > 1:
        return Proof(
            strategy,
            mesh.size,
            refusal=f"An output of shape {found.output_shapes} has not the {batch} samples of the "
            "input in dim 0, so the outputs of several ranks cannot be put together.",
        )
    if drawn := next((mix for mix in plan.mixes if mix.random), None):
        where = f"Layer {drawn.layer!r}" if drawn.layer else f"{type(module).__name__}.forward"
        return Proof(
            strategy,
            mesh.size,
            refusal=f"{where} draws {drawn.operation}: nothing can be compared; {drawn.advice}.",
        )
    alone = compose(replace(start, mesh=Mesh()), found)
    return _compare(module, values, plan, alone, strategy)


def verify_workload(work: Workload, strategy: str, **options: Any) -> Proof:
    """Compare a pass of the workload's model over its first batch, as :func:`verify` does."""
    batch = [torch.from_numpy(x[: work.batch_size].compute()) for x in work.inputs]
    return verify(work.make_model(), *batch, strategy=strategy, **options)


def _compare(
    module: nn.Module, values: list[Tensor], plan: Plan, alone: Plan, strategy: str
) -> Proof:
    """Run both plans on threads and compare; what a rank has is compared where it belongs."""
    source = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(array.shape, dtype=torch.float64, generator=source) for array in plan.outputs
    ]
    try:
        (serial,) = run_threads(
            1, lambda comm: _run(module, alone, comm, values, cotangents), timeout_s=TIMEOUT_S
        )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise PlanError(
            f"The module does not take these inputs in the serial run either: {error}"
        ) from error
    parts = run_threads(
        plan.ranks,
        lambda comm: _run(module, plan, comm, values, cotangents),
        timeout_s=TIMEOUT_S,
    )
    ranks = range(plan.ranks)
    return Proof(
        strategy,
        plan.ranks,
        outputs=_difference(
            (whole[_slices(plan, array, rank)], parts[rank].outputs[number])
            for number, (whole, array) in enumerate(zip(serial.outputs, plan.outputs, strict=True))
            for rank in ranks
            if parts[rank].outputs  # the last stage of a pipeline has them
        ),
        input_gradients=_difference(
            zip(serial.input_gradients, _added_up(plan, values, parts), strict=True)
        ),
        parameter_gradients=_difference(
            (
                _owned(plan, name, serial.parameter_gradients.get(name), rank),
                parts[rank].parameter_gradients.get(name),
            )
            for rank in ranks
            for name in {*serial.parameter_gradients, *parts[rank].parameter_gradients}
            if plan.holds(name, rank)
        ),
        buffers=_difference(
            (_owned(plan, name, value, rank), parts[rank].buffers[name])
            for rank in ranks
            for name, value in serial.buffers.items()
            if plan.holds(name, rank)
        ),
        predicted_bytes=tuple(_predicted(plan, rank) for rank in ranks),
        sent_bytes=tuple(part.sent_bytes for part in parts),
    )


def _run(
    module: nn.Module, plan: Plan, comm: Comm, inputs: list[Tensor], cotangents: list[Tensor]
) -> _Part:
    """Run one rank's part of the pass."""
    rank = comm.rank
    mine = [
        _leaf(x[_slices(plan, array, rank)].clone())
        for x, array in zip(inputs, plan.inputs, strict=True)
    ]
    first, last = balanced(plan.batch.size, plan.mesh.replicas, plan.mesh.replica(rank))
    share = Share(start=first, rows=last - first)
    groups = Groups(comm, plan.mesh, parts_of(plan))
    model, weights = copy.deepcopy(module), WeightGradients()
    weights.watch(model, SCHEDULES[plan.option("schedule", "1f1b")].splits_backward)
    model = parallelize(model, plan, groups, share)
    pipeline: Pipeline | None = None
    if plan.stages:
        calls = Trace(module, inputs).calls
        pipeline = Pipeline(model, plan, groups, calls, weights, torch.device("cpu"))
    own = {name: p for name, p in model.named_parameters() if plan.holds(name, rank)}
    gradients = GradientBuckets(own, plan.buckets, groups, plan.summed_in_layers)
    weights.add = gradients.add
    outputs: list[Tensor] = []

    def finish(_: int, output: object) -> list[Tensor]:
        outputs.extend(tensors_in(output))
        weighted = [
            (made * g[_slices(plan, array, rank)]).sum() / plan.copies(_cuts(plan, array))
            for made, array, g in zip(outputs, plan.outputs, cotangents, strict=True)
            if made.requires_grad
        ]
        alone = plan.mesh.degree("pipeline")  # ranks of other stages have no outputs
        return [torch.stack(weighted).sum() * alone] if weighted else []

    if pipeline is not None:
        pipeline.run({0: mine}, lambda _: True, finish)
        pipeline.work_off()
    else:
        ends = finish(0, model(*mine))
        with weights.collecting():
            torch.autograd.backward(ends)
    if plan.buckets:
        arrived = torch.tensor(gradients.reduce(), dtype=torch.float64)
        gradients.release([bool(n) for n in comm.all_reduce(arrived)])
    return _Part(
        outputs=[o.detach() for o in outputs],
        input_gradients=[x.grad for x in mine],
        parameter_gradients={
            name: p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
            for name, p in own.items()
            if p.grad is not None
        },
        buffers={name: b.detach().clone() for name, b in model.named_buffers()},
        sent_bytes=sum(comm.sent_bytes.values()),
    )


def _cuts(plan: Plan, array: Traced) -> tuple[Cut, ...]:
    """Return how an array is cut: its labels, and dim 0 if that counts the samples of the batch."""
    rows = array.shape[:1] == (plan.batch.size,) and plan.mesh.replicas > 1
    return (*plan.cuts_of(array), *((Cut(0, "data"),) if rows else ()))


def _slices(plan: Plan, array: Traced, rank: int) -> tuple[slice, ...]:
    return tuple(slice(*run) for run in plan.share(array.shape, _cuts(plan, array), rank))


def _owned(plan: Plan, name: str, value: Tensor | None, rank: int) -> Tensor | None:
    """Return what ``rank`` has of a whole parameter or buffer."""
    if value is None:
        return None
    for cut in plan.parameter_cuts(name):
        value = own_part(value, cut, plan, rank)
    return value


def _predicted(plan: Plan, rank: int) -> int:
    """Return what the plan says a rank sends here: one pass, and who had a gradient."""
    record = [c for c in plan.collectives if c.phase not in ("start", "update", "record")]
    arrived = Collective(
        "arrived",
        "all_reduce",
        tuple(axis for axis, _ in plan.mesh.axes),
        sum(len(bucket.names) for bucket in plan.buckets),
        8,
        "record",
    )
    return sum(plan.sent_by(c, rank) for c in (*record, *([arrived] if plan.buckets else ())))


def _check_exact(chosen: dict[str, str]) -> None:
    """Refuse what is about rounding or about steps: one pass in float64 says nothing of it."""
    defaults = {"precision": "full", "compression": "none"}
    for name in ("precision", *replicas.OPTIONS):
        if name in chosen and chosen[name] != defaults.get(name):
            raise PlanError(
                f"verify proves one pass in float64, of which {name}={chosen[name]} changes "
                f"nothing; leave {name} out, and see its loss by wb.compare."
            )


def _check_module(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise PlanError("The module has lazy layers without a shape; call it once before.")
    tensors = [*inputs, *module.parameters(), *module.buffers()]
    if any(isinstance(x, Tensor) and x.is_complex() for x in tensors):
        raise PlanError(
            "The module or its input is complex, and the proof is made in real float64; give real "
            "and imaginary part as two channels (torch.view_as_real)."
        )


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def _double(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise PlanError(f"verify takes tensors as inputs; got {type(x).__name__}.")
    x = x.detach().cpu()
    return x.double() if x.is_floating_point() else x


def _added_up(plan: Plan, inputs: list[Tensor], parts: list[_Part]) -> list[Tensor | None]:
    """Put gradients of shares in their places; those of what several ranks have, added up."""
    found: list[Tensor | None] = []
    for number, (x, array) in enumerate(zip(inputs, plan.inputs, strict=True)):
        pieces = [part.input_gradients[number] for part in parts]
        if all(piece is None for piece in pieces):
            found.append(None)
            continue
        whole = torch.zeros_like(x)
        for rank, piece in enumerate(pieces):
            if piece is not None:
                whole[_slices(plan, array, rank)] += piece
        found.append(whole)
    return found


def _difference(pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> float | None:
    """Return the largest difference; infinite where a value is missing, misshapen or no number."""
    largest: float | None = None
    for a, b in pairs:
        if a is None and b is None:
            continue
        if a is None or b is None or a.shape != b.shape:
            return float("inf")
        if a.numel() == 0:
            continue
        same = (a == b) | (a.isnan() & b.isnan())  # equal infinities, and no number in both
        gaps = torch.where(same, 0.0, (a.double() - b.double()).abs())
        gap = float(gaps.nan_to_num(float("inf")).max())
        largest = max(gap, largest or 0.0)
    return largest
