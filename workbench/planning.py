"""Make a plan: profile the workload, then let each axis of the strategy cut it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.arguments import check_accumulate
from workbench.errors import PlanError
from workbench.mesh import Mesh
from workbench.plan import Batch, LayerPlan, Plan
from workbench.strategies import STRATEGIES
from workbench.strategies.notation import parse

if TYPE_CHECKING:
    from workbench.workload import Workload


def plan(work: Workload, strategy: str = "serial", *, accumulate: int = 1, **options: str) -> Plan:
    """Apply ``strategy`` to ``work``; nothing is started and nothing is computed.

    Parameters
    ----------
    strategy:
        ``"serial"``, or degrees on axes: ``"data=2"``.
    accumulate:
        Micro-batches per step, whose gradients are added up before the update.
    options:
        Stated choices of the strategies, such as ``batch_norm="local"``.

    Raises
    ------
    PlanError
        If it cannot be done: says what was asked, the constraint, the numbers, and what works.
    """
    import torch

    from workbench.inputs import check_loss, check_workload
    from workbench.profile import profile

    mesh = parse(strategy)
    check_options(options)
    check_workload(work)
    check_accumulate(accumulate, work.batch_size)
    batch = torch.empty(
        (work.batch_size, *work.sample_shape), dtype=getattr(torch, work.input_dtype), device="meta"
    )
    found = profile(work.make_model(), batch)
    _check_outputs(found.output_shapes, work.batch_size, mesh)
    notes = []
    kind = "mean"
    if found.plain:
        kind = check_loss(work, found.output_shapes[0][1:])
    else:
        notes.append(
            "the loss is taken to be a mean over samples: the model's output is not one tensor"
        )
    if mesh.degree("data") > 1 and isinstance(
        work.make_optimizer(list(work.make_model().named_parameters())), torch.optim.SparseAdam
    ):
        raise PlanError(
            f"data={mesh.degree('data')} adds up dense gradients, and SparseAdam takes only sparse "
            "ones; use serial, or torch.optim.Adam."
        )
    start = Plan(
        workload=work.name,
        batch=Batch(work.batch_size, work.samples, accumulate),
        layers=tuple(LayerPlan(layer) for layer in found.layers),
        options=(*options.items(), ("loss", kind)),
        notes=tuple(notes),
        output_shape=found.output_shapes[0] if found.plain else (),
    )
    return compose(start, mesh)


def compose(start: Plan, mesh: Mesh) -> Plan:
    """Let every axis of ``mesh`` cut the plan, one after the other."""
    result = start
    for axis, degree in mesh.axes:
        if degree > 1:
            result = STRATEGIES[axis].cut(result, degree)
    return result


def check_options(options: dict[str, str]) -> None:
    """Raise PlanError for an option that no strategy has, or a value that it does not take."""
    known = {name: values for s in STRATEGIES.values() for name, values in s.options.items()}
    for name, value in options.items():
        if name not in known:
            raise PlanError(f"There is no option {name!r}; there are: {', '.join(known)}.")
        if value not in known[name]:
            allowed = " or ".join(repr(v) for v in known[name])
            raise PlanError(f"Option {name}={value!r} is not one of its choices: {allowed}.")


def _check_outputs(shapes: tuple[tuple[int, ...], ...], batch_size: int, mesh: Mesh) -> None:
    """Check that outputs go with samples, one by one, where the batch is to be cut."""
    wrong = [shape for shape in shapes if shape[:1] != (batch_size,)]
    if wrong and mesh.degree("data") > 1:
        raise PlanError(
            f"data={mesh.degree('data')} cuts the batch, but for {batch_size} samples the "
            f"model gives "
            f"an output of shape {wrong[0]}, whose dim 0 does not count them. Use serial, or let "
            f"the model return one row per sample."
        )
