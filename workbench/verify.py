"""Prove that a strategy gives the serial result: ranks as threads of this process, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.errors import PlanError
from workbench.layers.gradients import GradientBuckets
from workbench.layers.share import Share
from workbench.layers.swap import parallelize
from workbench.mesh import balanced
from workbench.plan import Batch, LayerPlan, Plan
from workbench.planning import check_options, compose
from workbench.profile import profile, tensors_in
from workbench.strategies.notation import parse

if TYPE_CHECKING:
    from workbench.workload import Workload

TOLERANCE = 1e-10
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Proof:
    """Largest absolute differences to the serial result, in float64; or why it was refused.

    ``outputs``, ``input_gradients``, ``parameter_gradients`` and ``buffers`` are None where there
    is nothing to compare, or nothing was compared because of ``refusal``.
    """

    strategy: str
    ranks: int
    outputs: float | None = None
    input_gradients: float | None = None
    parameter_gradients: float | None = None
    buffers: float | None = None
    refusal: str | None = None

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
class _Result:
    outputs: list[Tensor]
    input_gradients: list[Tensor | None]
    parameter_gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def verify(module: nn.Module, *inputs: Tensor, strategy: str, **options: str) -> Proof:
    """Compare one forward and backward pass of ``module`` under ``strategy`` with the serial one.

    Runs on copies in float64, on the CPU, with a random gradient at every output.

    Parameters
    ----------
    inputs:
        Tensors for ``module(*inputs)``, samples in dim 0.
    strategy:
        As for :func:`workbench.plan`; a refusal is returned, not raised.

    Raises
    ------
    PlanError
        If the strategy or an option is not one, or the module does not take the inputs.
    """
    mesh = parse(strategy)
    check_options(options)
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise PlanError("The module has lazy layers without a shape; call it once before.")
    module = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
    values = [_double(x) for x in inputs]
    found = profile(module, *values)
    batch = next((x.shape[0] for x in values if x.dim()), 0)
    start = Plan(
        workload=type(module).__name__,
        batch=Batch(batch, batch),
        layers=tuple(LayerPlan(layer) for layer in found.layers),
        options=tuple(options.items()),
    )
    try:
        plan = compose(start, mesh)
    except PlanError as refusal:
        return Proof(strategy, mesh.size, refusal=str(refusal))
    if any(shape[:1] != (batch,) for shape in found.output_shapes) and mesh.size > 1:
        return Proof(
            strategy,
            mesh.size,
            refusal=f"An output of shape {found.output_shapes} has not the {batch} samples of the "
            "input in dim 0, so the outputs of several ranks cannot be put together.",
        )
    source = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(shape, dtype=torch.float64, generator=source) for shape in found.output_shapes
    ]
    serial = run_threads(
        1,
        lambda comm: _run(module, start, comm, values, cotangents, batch),
        timeout_s=TIMEOUT_S,
    )[0]
    parts = run_threads(
        mesh.size,
        lambda comm: _run(copy.deepcopy(module), plan, comm, values, cotangents, batch),
        timeout_s=TIMEOUT_S,
    )
    return Proof(
        strategy,
        mesh.size,
        outputs=_difference(zip(serial.outputs, _joined([p.outputs for p in parts]), strict=True)),
        input_gradients=_difference(
            zip(serial.input_gradients, _gradients_of_inputs(values, parts, batch), strict=True)
        ),
        parameter_gradients=_difference(
            (serial.parameter_gradients.get(name), part.parameter_gradients.get(name))
            for part in parts
            for name in {*serial.parameter_gradients, *part.parameter_gradients}
        ),
        buffers=_difference(
            (value, part.buffers[name]) for part in parts for name, value in serial.buffers.items()
        ),
    )


def verify_workload(work: Workload, strategy: str, **options: str) -> Proof:
    """Compare a pass of the workload's model over its first batch, as :func:`verify` does."""
    batch = work.x[: work.batch_size].compute()
    return verify(work.make_model(), torch.from_numpy(batch), strategy=strategy, **options)


def _run(
    module: nn.Module,
    plan: Plan,
    comm: Comm,
    inputs: list[Tensor],
    cotangents: list[Tensor],
    batch: int,
) -> _Result:
    """Run one rank's part of the pass."""
    degree = plan.mesh.degree("data")
    first, last = balanced(batch, degree, comm.rank) if batch else (0, 0)
    mine = [_part(x, first, last, batch).detach().clone() for x in inputs]
    for x in mine:
        x.requires_grad_(x.is_floating_point())
    share = Share(start=first, rows=last - first)
    model = parallelize(copy.deepcopy(module), plan, comm, share)
    gradients = GradientBuckets(dict(model.named_parameters()), plan.buckets, comm)
    outputs = tensors_in(model(*mine))
    weighted = [
        (output * _part(g, first, last, batch)).sum()
        for output, g in zip(outputs, cotangents, strict=True)
        if output.requires_grad
    ]
    if weighted:
        torch.stack(weighted).sum().backward()
    if plan.buckets:
        arrived = torch.tensor(gradients.reduce(), dtype=torch.float64)
        gradients.release([bool(n) for n in comm.all_reduce(arrived)])
    return _Result(
        outputs=[o.detach() for o in outputs],
        input_gradients=[x.grad for x in mine],
        parameter_gradients={
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        },
        buffers={name: b.detach().clone() for name, b in model.named_buffers()},
    )


def _double(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise PlanError(f"verify takes tensors as inputs; got {type(x).__name__}.")
    x = x.detach().cpu()
    return x.double() if x.is_floating_point() else x


def _part(x: Tensor, first: int, last: int, batch: int) -> Tensor:
    """Return the rank's samples; a tensor without one entry per sample is whole on every rank."""
    return x[first:last] if x.dim() and x.shape[0] == batch else x


def _gradients_of_inputs(
    inputs: list[Tensor], parts: list[_Result], batch: int
) -> list[Tensor | None]:
    """Join the gradients of samples; add those of an input that all ranks saw."""
    joined = _joined([p.input_gradients for p in parts])
    for number, x in enumerate(inputs):
        pieces = [p.input_gradients[number] for p in parts]
        if not (x.dim() and x.shape[0] == batch) and all(g is not None for g in pieces):
            joined[number] = torch.stack([g for g in pieces if g is not None]).sum(0)
    return joined


def _joined(parts: list[list[Tensor]] | list[list[Tensor | None]]) -> list[Tensor | None]:
    joined: list[Tensor | None] = []
    for pieces in zip(*parts, strict=True):
        present = [p for p in pieces if p is not None]
        joined.append(torch.cat(present) if len(present) == len(pieces) else None)
    return joined


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
        gap = float((a.double() - b.double()).abs().nan_to_num(float("inf")).max())
        largest = max(gap, largest or 0.0)
    return largest
