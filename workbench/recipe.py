"""What is computed, without the data: all that a rank needs to make model, loss and optimizer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from workbench import pickling
from workbench.errors import PlanError
from workbench.generators import set_aside
from workbench.given import ByName, listed

Named = tuple[str, nn.Parameter]
MakeOptimizer = Callable[[Any], Optimizer]


@dataclass(frozen=True)
class Recipe:
    """Model, loss and optimizer of a workload, with the numbers that they depend on.

    ``sample_shapes``, of each input, and ``target_shape`` are those of one sample. ``dtype`` is
    that of parameters, ``input_dtypes`` and ``target_dtype`` are those of the data; all are numpy's
    names. ``input_names`` are the arguments that get the inputs, if that does not go by order.
    """

    name: str
    model: nn.Module | Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: MakeOptimizer
    batch_size: int
    seed: int
    dtype: str
    input_dtypes: tuple[str, ...]
    target_dtype: str
    sample_shapes: tuple[tuple[int, ...], ...]
    target_shape: tuple[int, ...]
    input_names: tuple[str, ...] = ()
    clip_norm: float | None = None
    shuffle_block: int = 1

    def make_model(self) -> nn.Module:
        """Return a new model on the CPU in training mode; the same numbers every time.

        It takes the inputs in order, even those that its code takes by name.
        The seed rules what a factory draws and what lazy layers draw; an instance keeps its own
        parameters. The caller's random state is left as it was.

        Raises
        ------
        PlanError
            if the factory fails or gives something else, or lazy layers cannot be given a shape.
        """
        with set_aside(self.seed):
            model = make_model(self.model).to(getattr(torch, self.dtype))
            if self.input_names:
                model.register_forward_pre_hook(ByName(self.input_names), with_kwargs=True)
            if any(is_lazy(tensor) for tensor in _tensors(model)):
                self._give_shapes(model)
        return model.train()

    def _give_shapes(self, model: nn.Module) -> None:
        # In eval mode, so that running statistics stay as they are and one sample is enough.
        samples = [
            torch.zeros((1, *shape), dtype=getattr(torch, dtype))
            for shape, dtype in zip(self.sample_shapes, self.input_dtypes, strict=True)
        ]
        try:
            with torch.no_grad():
                model.eval()(*samples)
        except Exception as error:
            raise PlanError(
                f"The lazy layers of {type(model).__name__} could not be given a shape by a sample "
                f"of shape {listed(self.sample_shapes)}: {error}"
            ) from error

    def make_optimizer(self, parameters: Iterable[nn.Parameter] | Iterable[Named]) -> Optimizer:
        """Return the optimizer of ``parameters``, plain or with names as ``named_parameters()``.

        Names are needed where the optimizer was given with several groups.

        Raises
        ------
        PlanError
            if there is no parameter, or the optimizer does not take them.
        """
        given: list[Any] = list(parameters)
        if not given:
            raise PlanError("The model has no trainable parameters: there is nothing to optimize.")
        if isinstance(self.optimizer, OptimizerOptions):
            return self.optimizer(given)
        plain = [each[1] if isinstance(each, tuple) else each for each in given]
        try:
            optimizer = self.optimizer(plain)
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"The optimizer could not be made from the model's parameters: {error}."
            ) from error
        if not isinstance(optimizer, Optimizer):
            raise PlanError(
                f"The optimizer made a {type(optimizer).__name__} and not a torch.optim.Optimizer."
            )
        known = {id(p) for p in plain}
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            raise PlanError(
                "The optimizer was made over other parameters than those it was given; every rank "
                "has its own, so write lambda parameters: torch.optim.SGD(parameters, lr=...)."
            )
        return optimizer

    def to_bytes(self) -> bytes:
        """Return this recipe for :func:`load_payload`.

        Raises
        ------
        PlanError
            if a part cannot be pickled, naming it.
        """
        return pickling.dump({field.name: getattr(self, field.name) for field in fields(self)})


def load_payload(data: bytes) -> Recipe:
    """Return the recipe that ``Workload.payload()`` put into ``data``."""
    return Recipe(**pickling.load(data))


@dataclass(frozen=True)
class OptimizerOptions:
    """An optimizer's class, options, and groups by parameter name, to be made anew elsewhere.

    ``groups`` holds names and own options of each group; ``everything`` says that there is one
    group with all parameters of the model.
    """

    kind: type[Optimizer]
    defaults: dict[str, Any]
    groups: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    everything: bool

    def __call__(self, parameters: Iterable[nn.Parameter] | Iterable[Named]) -> Optimizer:
        """Return the optimizer with the same groups over ``parameters``, which have names."""
        given: list[Any] = list(parameters)
        if self.everything:
            plain = [each[1] if isinstance(each, tuple) else each for each in given]
            return self.kind([{"params": plain, **self.groups[0][1]}], **self.defaults)
        if not all(isinstance(each, tuple) for each in given):
            raise TypeError("parameters must come with names: give model.named_parameters()")
        found = dict(given)
        groups = [
            {"params": [found[name] for name in names if name in found], **options}
            for names, options in self.groups
        ]
        if not any(group["params"] for group in groups):
            raise PlanError(
                f"The optimizer was made for other parameters, such as {self.groups[0][0][0]!r}, "
                f"than this model's, such as {next(iter(found))!r}."
            )
        return self.kind(groups, **self.defaults)


def own_model(model: nn.Module | Callable[[], nn.Module]) -> nn.Module | Callable[[], nn.Module]:
    """Return a copy of a user's model on the CPU, which nobody else changes, or the factory itself.

    Raises
    ------
    PlanError
        if it is neither, has no values, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        if callable(model):
            return model
        raise PlanError(
            f"The model is a {type(model).__name__}; give a torch.nn.Module, or a function that "
            f"makes one."
        )
    if any(t.is_meta for t in _tensors(model)):
        raise PlanError(
            f"The model {type(model).__name__} is on the meta device and has no values; give a "
            f"function that makes it."
        )
    if name := hooked(model):
        raise PlanError(
            f"The gradient of {name!r} has a hook, which no copy of the model has; give a function "
            "that makes the model and its hook, as in model=make."
        )
    return _copy("the model", model).cpu()


def hooked(model: nn.Module) -> str:
    """Return the name of a parameter whose gradient has a hook; empty if there is none."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return name
    return ""


def make_model(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return a copy of the model, or what the factory makes.

    Raises
    ------
    PlanError
        if the factory fails or gives something else.
    """
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    try:
        made = model()
    except Exception as error:
        raise PlanError(f"Making the model failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise PlanError(
            f"The model's factory gave a {type(made).__name__} and not a torch.nn.Module."
        )
    return made.cpu()


def own_loss(loss: Any, dtype: str) -> Callable[..., Tensor]:
    """Return the loss with its tensors, such as class weights, on the CPU and in ``dtype``.

    Raises
    ------
    PlanError
        if it is not a function, or cannot be copied.
    """
    if loss is None:
        return nn.CrossEntropyLoss()
    if isinstance(loss, nn.Module):
        own: nn.Module = _copy("the loss", loss)
        return own.cpu().to(getattr(torch, dtype))
    if isinstance(loss, type) or not callable(loss):
        title = loss.__name__ if isinstance(loss, type) else type(loss).__name__
        raise PlanError(
            f"The loss {title} is not a function of outputs and targets; for a loss of torch, "
            f"make one: torch.nn.CrossEntropyLoss()."
        )
    made: Callable[..., Tensor] = loss
    return made


def own_optimizer(optimizer: Any, model: nn.Module | Callable[[], nn.Module]) -> MakeOptimizer:
    """Return a maker of the optimizer; an instance over the parameters of ``model`` is read out.

    Raises
    ------
    PlanError
        if an instance has stepped already or is not over the parameters of ``model``.
    """
    if optimizer is None:
        return _default_optimizer
    if not isinstance(optimizer, Optimizer):
        if callable(optimizer):
            return optimizer
        raise PlanError(
            f"The optimizer is a {type(optimizer).__name__}; give a class such as "
            f"torch.optim.Adam, a function of the parameters, or an optimizer made over "
            f"model.parameters()."
        )
    kind = type(optimizer)
    # Adagrad has state from the start; its count of steps tells whether it has gathered anything.
    if any(state.get("step", 1) > 0 for state in optimizer.state.values() if state):
        raise PlanError(
            f"The optimizer {kind.__name__} has made steps already and what it gathered would be "
            f"lost; give a new one, such as torch.optim.{kind.__name__}."
        )
    names = _names(model)
    groups = []
    for group in optimizer.param_groups:
        if not all(id(p) in names for p in group["params"]):
            raise PlanError(
                f"The optimizer {kind.__name__} was made over other parameters than the model's; "
                f"make it from the same model, or give the class torch.optim.{kind.__name__}."
            )
        options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        groups.append((tuple(names[id(p)] for p in group["params"]), copy.deepcopy(options)))
    taken = inspect.signature(kind).parameters
    defaults = {key: copy.deepcopy(v) for key, v in optimizer.defaults.items() if key in taken}
    everything = len(groups) == 1 and set(groups[0][0]) == set(names.values())
    return OptimizerOptions(kind, defaults, tuple(groups), everything)


def _default_optimizer(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _names(model: nn.Module | Callable[[], nn.Module]) -> dict[int, str]:
    if not isinstance(model, nn.Module):
        return {}
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _copy(name: str, part: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(part)
    except Exception as error:
        where, reason = pickling.culprit({name: part}, copy.deepcopy) or (name, error)
        sentence = str(reason).split(". ")[0]
        raise PlanError(
            f"{where[0].upper()}{where[1:]} cannot be copied ({sentence}); give a function that "
            f"makes it anew."
        ) from error
