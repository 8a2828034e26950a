"""Checks of a workload that need no run: each refusal is one sentence, before anything starts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from workbench.datasets.scan import Offenders, Rule, scan
from workbench.errors import PlanError
from workbench.given import titles

if TYPE_CHECKING:
    from threading import Event

    from torch import nn
    from torch.optim import Optimizer

    from workbench.trials import Kind
    from workbench.workload import Workload


def check_workload(work: Workload) -> None:
    """Check what can be seen in the client without looking at the data's values.

    That is the numbers of the workload, whether the model takes as many inputs as there are, the
    optimizer and its parameters, the dtype of labels, and whether model, loss and optimizer can be
    sent to the ranks.

    Raises
    ------
    PlanError
        with what is wrong and what would be right.
    """
    check_batch_size(work.batch_size, work.samples)
    _check_count("steps", work.steps, least=1)
    _check_count("seed", work.seed, least=0)
    _check_count("shuffle_block", work.shuffle_block, least=1)
    if work.seed >= 2**64:
        raise PlanError(f"seed={work.seed} is too large for the generators; use one below 2**64.")
    if work.clip_norm is not None and not 0 < work.clip_norm < float("inf"):
        raise PlanError(
            f"clip_norm={work.clip_norm!r} is no limit for a norm; give a number above 0, or None."
        )
    _check_labels_dtype(work)
    _check_loss_parameters(work)
    model = work.make_model()
    _check_call(model, work)
    trainable = [n for n in model.named_parameters() if n[1].requires_grad]
    _check_optimizer(work.make_optimizer(trainable))
    work.payload()


def check_batch_size(batch_size: Any, samples: int) -> None:
    """Check that a batch has between one and all of the samples.

    Raises
    ------
    PlanError
        naming the nearest size that works.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise PlanError(
            f"batch_size={batch_size!r} is not a whole number; give one between 1 and {samples:,}."
        )
    if not 1 <= batch_size <= samples:
        raise PlanError(
            f"batch_size={batch_size:,} does not fit {samples:,} samples; the nearest that works "
            f"is {1 if batch_size < 1 else samples:,}."
        )


def check_loss(work: Workload, outputs: Any) -> Kind:
    """Return how the loss sums over samples: see :func:`workbench.trials.loss_kind`.

    ``outputs`` are those of the model for some samples, as that function takes them.

    Raises
    ------
    PlanError
        if the loss cannot be shared by ranks or does not take the model's output.
    """
    from workbench.trials import loss_kind

    return loss_kind(work.loss, outputs, work.target_shape, work.target_dtype)


def check_values(
    work: Workload, classes: int | None, client: Any = None, stop: Event | None = None
) -> None:
    """Look through training and test data on the workers: NaN, infinities, labels out of range.

    Only counts and places come back. ``classes`` is the number of the model's outputs, or None if
    the targets are not labels; ``client`` a Dask client, or None for Dask's current scheduler;
    setting ``stop`` ends the search with a RunError.

    Raises
    ------
    PlanError
        with the place and value of the first offender and how many there are.
    """
    from workbench.losses import class_dim, ignored_label

    finite = Rule()
    labels = None
    if work.target_dtype == "int64" and classes is not None and class_dim(work.loss) is not None:
        labels = Rule(classes, ignored_label(work.loss))
    real = [finite if dtype == work.dtype else None for dtype in work.input_dtypes]
    rules = [*real, finite if work.target_dtype != "int64" else labels]
    said = (*titles(len(real), work.input_names), "y")
    wanted = {
        prefix + name: (array, rule)
        for prefix, arrays in (
            ("", (*work.inputs, work.y)),
            ("test ", () if work.test_y is None else (*work.test_inputs, work.test_y)),
        )
        for name, array, rule in zip(said, arrays, rules, strict=False)
        if rule is not None
    }
    for name, offenders in scan(wanted, client, stop=stop).items():
        raise PlanError(_offence(name, offenders, wanted[name][1]))


def _check_call(model: nn.Module, work: Workload) -> None:
    """Check that a model's code takes as many inputs as the workload has, or those names."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # no code of Python, of which nobody can tell
        return
    in_order = () if work.input_names else work.inputs
    try:
        signature.bind(*in_order, **dict.fromkeys(work.input_names))
    except TypeError as error:
        given = len(work.inputs)
        raise PlanError(
            f"The data has {given} input{'s' if given > 1 else ''} for the model "
            f"({', '.join(titles(given, work.input_names))}), and {type(model).__name__} takes "
            f"({', '.join(signature.parameters)}): {error}; give x as a tuple of as many arrays, "
            "in that order, or as a dict of arrays by these names."
        ) from error


def _offence(name: str, found: Offenders, rule: Rule) -> str:
    where = f"{name}[{', '.join(map(str, found.index))}]"
    others = f", and {found.count - 1:,} more are like it" if found.count > 1 else ""
    if rule.classes is None:
        return f"{where} is {found.value}{others}; the data must be finite numbers of its dtype."
    wanted = f"labels must be 0 to {rule.classes - 1}, as the model gives {rule.classes} classes"
    if rule.ignored is not None:
        wanted += f", or {rule.ignored}, which the loss leaves out"
    elif found.value < 0:
        wanted += "; to leave samples out, label them -1 and give the loss ignore_index=-1"
    return f"{where} is {int(found.value)}{others}; {wanted}."


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PlanError(f"{name}={value!r} must be a whole number of at least {least}.")


def _check_labels_dtype(work: Workload) -> None:
    from torch.nn import NLLLoss

    from workbench.losses import class_dim

    if class_dim(work.loss) is None or work.target_dtype == "int64":
        return
    if isinstance(work.loss, NLLLoss) or not work.target_shape:
        raise PlanError(
            f"The labels y are real numbers ({work.target_dtype}) and {type(work.loss).__name__} "
            f"needs whole ones; give y.astype('int64')."
        )


def _check_loss_parameters(work: Workload) -> None:
    from torch.nn import Module

    if isinstance(work.loss, Module) and any(p.requires_grad for p in work.loss.parameters()):
        raise PlanError(
            f"The loss {type(work.loss).__name__} has parameters of its own, which nothing would "
            f"train; put them into the model."
        )


def _check_optimizer(optimizer: Optimizer) -> None:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise PlanError(
            f"The optimizer {type(optimizer).__name__} evaluates the model several times per step, "
            f"which ranks cannot share; give another, such as torch.optim.SGD or Adam."
        )
