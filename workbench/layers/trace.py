"""All calls of a model's modules in one forward pass, found without computing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.errors import PlanError
from workbench.plan.stages import Call, Size


@dataclass(frozen=True)
class Spec:
    """A tensor as the trace has seen it."""

    size: Size
    dtype: torch.dtype
    gradient: bool


@dataclass
class Record:
    """One call as the trace has seen it: when it began and ended, and what it returned.

    ``writes`` are the places of the arguments that it has written to.
    """

    enter: int
    exit: int = -1
    arguments: list[Spec] = field(default_factory=list)
    results: list[Spec] = field(default_factory=list)
    result: Any = None
    inside: list[str] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)


class Trace:
    """All calls of a model's modules in one forward pass, in order.

    Found by running the model twice without computing, with two numbers of samples, which tells how
    every shape depends on that.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        try:
            self.device = torch.device("meta")
            self.calls = _calls(on_meta(model), [_like(x, 2, self.device) for x in inputs])
        except Exception:  # the model looks at values: zeros will do
            self.device = torch.device("cpu")
            self.calls = _calls(self.copy(model), [_like(x, 2, self.device) for x in inputs])
        other = _calls(self.copy(model), [_like(x, 3, self.device) for x in inputs])
        if list(self.calls) != list(other):
            raise PlanError(
                "The model's code takes another way for another number of samples, so that its "
                "batch cannot be cut into micro-batches; use tensor, or let it not depend on that."
            )
        for call, record in self.calls.items():
            for ours, theirs in (
                (record.arguments, other[call].arguments),
                (record.results, other[call].results),
            ):
                ours[:] = [_grown(a, b) for a, b in zip(ours, theirs, strict=True)]

    def copy(self, model: nn.Module) -> nn.Module:
        """Return a copy of ``model`` where it can be traced."""
        return on_meta(model) if self.device.type == "meta" else copy.deepcopy(model).cpu()


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` on the meta device; parameters are not copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _like(x: Tensor, samples: int, device: torch.device) -> Tensor:
    made = torch.zeros((samples, *x.shape[1:]), dtype=x.dtype, device=device)
    return made.requires_grad_(x.requires_grad)


def _grown(two: Spec, three: Spec) -> Spec:
    """Return how a shape depends on the number of samples, from those for two and for three."""
    sizes = zip(two.size.of(0), three.size.of(0), strict=True)
    return Spec(Size(tuple((a - 2 * (b - a), b - a) for a, b in sizes)), two.dtype, two.gradient)


def _spec(x: Tensor) -> Spec:
    return Spec(Size(tuple((n, 0) for n in x.shape)), x.dtype, x.requires_grad)


def _calls(model: nn.Module, inputs: Sequence[Tensor]) -> dict[Call, Record]:
    names = {module: name for name, module in model.named_modules()}
    counts: dict[str, int] = {}
    found: dict[Call, Record] = {}
    open_: list[tuple[Call, list[tuple[Tensor, int]]]] = []
    clock = iter(range(10**9))

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        name = names[module]
        call = Call(name, counts.get(name, 0))
        counts[name] = call.number + 1
        for outer, _ in open_:
            found[outer].inside.append(name)
        given = all_tensors((args, kwargs))
        found[call] = Record(next(clock), arguments=list(map(_spec, given)))
        open_.append((call, [(x, x._version) for x in given]))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call, given = open_.pop()
        record = found[call]
        record.writes = [n for n, (x, before) in enumerate(given) if x._version != before]
        record.exit = next(clock)
        record.results = list(map(_spec, all_tensors(output)))
        record.result = pytree.tree_map_only(Tensor, lambda _: Tensor, output)

    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.enable_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def all_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
