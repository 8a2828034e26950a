"""What a checkpoint says of the workload that it is of, and whether a workload is that one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from workbench.checkpoint.manifest import Manifest, Stored
from workbench.errors import PlanError

if TYPE_CHECKING:
    from torch import nn

    from workbench.plan import Plan
    from workbench.workload import Workload

_SAME = ("batch_size", "seed", "samples", "dtype", "optimizer")
_DERIVED = ("loss", "clip_norm")  # what a plan has from the workload
_CHANGES = ("batch_size", "seed", "dtype", "steps", "clip_norm")


def options_of(plan: Plan) -> dict[str, str]:
    """Return the choices of the strategy that were stated for a plan."""
    return {name: value for name, value in plan.options if name not in _DERIVED}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a workload once its model has been made.

    ``said`` is what a checkpoint says of it, ready for JSON. ``arrays`` are the shapes and dtypes
    of the model's parameters and buffers, by kind and name.
    """

    said: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, tuple[tuple[int, ...], str]]]


_known: WeakKeyDictionary[Workload, Facts] = WeakKeyDictionary()


def facts(work: Workload) -> Facts:
    """Return what is known of ``work``; its model is made the first time."""
    if work not in _known:
        model = work.make_model()
        arrays = {
            kind: {
                name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors
            }
            for kind, tensors in (
                ("parameter", model.named_parameters()),
                ("buffer", model.named_buffers()),
            )
        }
        _known[work] = Facts(_describe(work, model), arrays)
    return _known[work]


def _describe(work: Workload, model: nn.Module) -> dict[str, Any]:
    from workbench.catalogue import CATALOGUE

    optimizer = work.make_optimizer(list(model.named_parameters()))
    return {
        "name": work.name,
        "catalogue": work.name in CATALOGUE,
        "model": type(model).__name__,
        "loss": getattr(work.loss, "__name__", type(work.loss).__name__),
        "optimizer": type(optimizer).__name__,
        "optimizer_options": {
            key: value
            for key, value in optimizer.defaults.items()
            if isinstance(value, bool | int | float | str)
        },
        "samples": work.samples,
        "batch_size": work.batch_size,
        "seed": work.seed,
        "dtype": work.dtype,
        "steps": work.steps,
        "clip_norm": work.clip_norm,
    }


def made_again(manifest: Manifest) -> Workload:
    """Return the workload of the catalogue that a checkpoint is of.

    Raises
    ------
    PlanError
        If it is of none, or of one that was changed in what a checkpoint does not hold.
    """
    from workbench.workload import workload

    said = manifest.workload
    name = said.get("name")
    if not said.get("catalogue"):
        raise PlanError(
            f"The checkpoint is of the workload {name!r}, which is none of the catalogue, and a "
            "checkpoint holds no code and no data; give the workload: wb.load(path, work=work)."
        )
    work = workload(str(name), **{key: said[key] for key in _CHANGES if key in said})
    found = facts(work).said
    for key in ("model", "loss", "optimizer", "optimizer_options", "samples"):
        if found[key] != said.get(key):
            raise PlanError(
                f"The checkpoint is of {name!r} with another {key} ({said.get(key)}, and the "
                f"catalogue has {found[key]}); give the workload: wb.load(path, work=work)."
            )
    return work


def check_same(manifest: Manifest, work: Workload) -> None:
    """Raise PlanError if ``work`` would go on in another way than the checkpoint was made in."""
    found = facts(work).said
    for key in _SAME:
        here, there = found[key], manifest.workload.get(key)
        if here == there:
            continue
        hint = f"use {key}={there!r}" if key != "samples" else "use the same data"
        raise PlanError(
            f"A checkpoint goes on as it was made, and {key} is {here!r} here and {there!r} there; "
            f"{hint}, or begin anew from its weights alone: wb.save(wb.load(path, work=same), "
            "'weights.safetensors')."
        )


def check_arrays(
    stored: Mapping[str, Stored], wanted: Mapping[str, tuple[tuple[int, ...], str]], what: str
) -> None:
    """Raise PlanError if names, shapes or dtypes of a model are not those of a checkpoint.

    ``wanted`` are shapes and dtypes by name; ``what`` is what they are.
    """
    problems = []
    for name, (shape, dtype) in wanted.items():
        found = stored.get(name)
        if found is None:
            problems.append(f"{name!r} is not in it")
        elif found.shape != shape:
            problems.append(f"{name!r} has the shape {found.shape} in it and {shape} in the model")
        elif found.dtype != dtype:
            problems.append(f"{name!r} is of {found.dtype} in it and of {dtype} in the model")
    problems += [f"{name!r} is not in the model" for name in stored if name not in wanted]
    refuse_misfits(
        [f"the {what} {problem}" for problem in problems], "The checkpoint is of another model"
    )


def refuse_misfits(problems: Sequence[str], claim: str) -> None:
    """Raise PlanError with the first of some problems, and their number."""
    if problems:
        more = f", the first of {len(problems)} that do not fit" if len(problems) > 1 else ""
        raise PlanError(f"{claim}: {problems[0]}{more}; give the workload that it was made with.")
