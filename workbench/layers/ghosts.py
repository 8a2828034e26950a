"""A model's forward pass from the middle: what comes before stands in as ghosts.

A stage of a pipeline runs the model's own code. Modules of earlier stages are not computed; their
results are ghosts, which have a shape and no numbers. Where the stage begins, ghosts that it meets
become real: they are received from the stage that has them. Where the next stage begins, the pass
ends. So a model of any code can be cut between any two calls of modules, with all that goes around
the cut carried along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.errors import PlanError, RunError
from workbench.plan.stages import Call, Size, Source

Receive = Callable[[Source, "Spec"], Tensor]
Shape = tuple[int, ...]
Own = Callable[[Source, Shape], Shape]
"""Given the shape of the whole of something: that of the rank's share."""


class Uncarried(PlanError):
    """A value that ``stage`` needs is none that a module was given or has returned."""

    stage = 1


class _Done(BaseException):
    """The next stage begins here."""


@dataclass(frozen=True)
class Spec:
    """A tensor as the trace has seen it."""

    size: Size
    dtype: torch.dtype
    gradient: bool


@dataclass
class Record:
    """One call as the trace has seen it: when it began and ended, and what it returned."""

    enter: int
    exit: int = -1
    arguments: list[Spec] = field(default_factory=list)
    results: list[Spec] = field(default_factory=list)
    result: Any = None
    inside: list[str] = field(default_factory=list)


_META = torch.device("meta")
"""Where ghosts are, whichever device code asks for: they have no numbers to move."""


class Ghost(Tensor):
    """A tensor without numbers: what it is the result of, and which pass it belongs to."""

    source: Source | None
    spec: Spec | None
    stages: Stages

    @classmethod
    def of(cls, shape: Tensor, stages: Stages, source: Source | None = None) -> Ghost:
        """Return a ghost of the shape of a tensor on the meta device."""
        found = torch.Tensor._make_subclass(cls, shape.detach())
        found.source, found.stages, found.spec = source, stages, None
        return found

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        stages = next(leaf.stages for leaf in leaves if isinstance(leaf, Ghost))
        if stages.real and func not in _ABOUT_SHAPES:
            args, kwargs = stages.materialized((args, kwargs))
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:  # a new object at every look: `is` would never hold
            return stages.device
        if func in (Tensor.cpu, Tensor.cuda):
            return args[0]
        args, kwargs = pytree.tree_map_only(Tensor, _on_meta, (args, kwargs))
        args, kwargs = pytree.tree_map_only(torch.device, lambda _: _META, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _META}
        if func == Tensor.to and len(args) > 1 and isinstance(args[1], str | int):
            args = (args[0], _META, *args[2:])
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            result = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda x: Ghost.of(x, stages), result)


_ABOUT_SHAPES = {
    getattr(Tensor, name).__get__
    if name in ("shape", "ndim", "dtype", "device")
    else getattr(Tensor, name)
    for name in ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "__len__")
}


def _on_meta(x: Tensor) -> Tensor:
    plain = x.as_subclass(Tensor) if isinstance(x, Ghost) else x
    return plain if plain.is_meta else torch.empty_like(plain, device="meta")


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
    open_: list[Call] = []
    clock = iter(range(10**9))

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        name = names[module]
        call = Call(name, counts.get(name, 0))
        counts[name] = call.number + 1
        for outer in open_:
            found[outer].inside.append(name)
        found[call] = Record(next(clock), arguments=list(map(_spec, _tensors((args, kwargs)))))
        open_.append(call)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        record = found[open_.pop()]
        record.exit = next(clock)
        record.results = list(map(_spec, _tensors(output)))
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


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class Stages:
    """A model that can be run stage by stage; modules get a ``forward`` that knows of the stages.

    Parameters
    ----------
    entries:
        The call with which each stage after the first one begins.
    device:
        Where the stages compute.
    own:
        What shape shares have; those of the whole if left out.

    Attributes
    ----------
    real:
        Whether the pass has come to the stage that is run.
    captured:
        What the last pass has in its hands of what was wanted of it.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Mapping[Call, Record],
        entries: Sequence[Call],
        device: torch.device,
        own: Own = lambda source, whole: whole,
    ) -> None:
        self.model, self.calls, self.entries, self.device = model, calls, tuple(entries), device
        self.own = own
        self.begins = [-1, *(calls[entry].enter for entry in entries)]
        self._stage_at = {entry: number for number, entry in enumerate(entries, start=1)}
        self.ends = [*self.begins[1:], 10**9]
        self.stage, self.samples, self.real = 0, 1, True
        self.receive: Receive = _nobody
        self.wanted: frozenset[Source] = frozenset()
        self._wanted_of: set[Call] = set()
        self.captured: dict[Source, Tensor] = {}
        self._received: dict[Source, Tensor] = {}
        self._counts: dict[str, int] = {}
        called = {call.module for call in calls}
        for name, module in list(model.named_modules()):
            if name in called:
                module.forward = self._around(name, module.forward)

    def stage_of(self, source: Source) -> int:
        """Return the stage that has ``source``."""
        if source.end == "argument":
            return self.entries.index(source.call)
        moment = self.calls[source.call].exit
        return max(n for n, begin in enumerate(self.begins) if begin < moment)

    def run(
        self,
        stage: int,
        inputs: Sequence[Tensor],
        receive: Receive,
        wanted: frozenset[Source] = frozenset(),
    ) -> Any:
        """Run one stage; returns the model's output for the last one, None for others."""
        self.stage, self.real, self.samples = stage, stage == 0, len(inputs[0])
        self.receive, self.wanted = receive, wanted
        self._wanted_of = {source.call for source in wanted}
        self.captured, self._received, self._counts = {}, {}, {}
        try:
            return self.model(*inputs)
        except _Done:
            return None

    def materialized(self, value: Any) -> Any:
        """Return ``value`` with every ghost in it replaced by the real tensor."""
        return pytree.tree_map_only(Ghost, self._real, value)

    def _real(self, ghost: Ghost) -> Tensor:
        source = ghost.source
        if source is None or ghost.spec is None or not ghost.spec.size.counts:
            raise Uncarried(
                f"a value of shape {tuple(ghost.shape)} that stage {self.stage} needs is computed "
                "between two modules"
            )
        if source not in self._received:
            with torch._C.DisableTorchFunction():  # nobody takes it for what the model's code does
                self._received[source] = self.receive(source, ghost.spec)
        return self._received[source]

    def _around(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(name, self._counts.get(name, 0))
            self._counts[name] = call.number + 1
            record = self.calls.get(call)
            if record is None:
                raise RunError(
                    f"Module {name!r} is called more often than when the plan was made; the "
                    "model's code takes another way. Use data or tensor."
                )
            number = self._stage_at.get(call)
            if number is not None:
                _name_arguments(call, record, (args, kwargs))
                if number == self.stage + 1:
                    self._capture(call, "argument", (args, kwargs))
                    raise _Done
                if number == self.stage:
                    self.real = True
            if not self.real and record.exit < self.begins[self.stage]:
                for inner in record.inside:
                    self._counts[inner] = self._counts.get(inner, 0) + 1
                return self._stand_in(call, record)
            if self.real and (kwargs or any(type(x) is not Tensor for x in args)):
                args, kwargs = self.materialized((args, kwargs))
            result = own(*args, **kwargs)
            if self.real:
                self._capture(call, "result", result)
            return result

        return forward

    def _stand_in(self, call: Call, record: Record) -> Any:
        """Return ghosts for what a call of an earlier stage returns."""
        if record.result is Tensor:
            return self._ghost(record.results[0], Source(call, "result"))
        leaves, tree = pytree.tree_flatten(record.result)
        specs, place = iter(record.results), 0
        for index, leaf in enumerate(leaves):
            if leaf is Tensor:
                leaves[index] = self._ghost(next(specs), Source(call, "result", place))
                place += 1
        return pytree.tree_unflatten(leaves, tree)

    def _ghost(self, spec: Spec, source: Source) -> Ghost:
        own = self.own(source, spec.size.of(self.samples))
        shape = torch.empty(own, dtype=spec.dtype, device=_META)
        found = Ghost.of(shape, self, source)
        found.spec = spec
        return found

    def _capture(self, call: Call, end: Any, value: Any) -> None:
        if call not in self._wanted_of:
            return
        for place, x in enumerate(_tensors(value)):
            source = Source(call, end, place)
            if source in self.wanted:
                self.captured[source] = self._real(x) if isinstance(x, Ghost) else x


def _name_arguments(call: Call, record: Record, given: Any) -> None:
    """Let ghosts that enter a stage be known by that, if by nothing else."""
    for place, (x, spec) in enumerate(zip(_tensors(given), record.arguments, strict=True)):
        if isinstance(x, Ghost) and x.source is None:
            x.source, x.spec = Source(call, "argument", place), spec


def _nobody(source: Source, spec: Spec) -> Tensor:
    raise RunError(f"The first stage receives nothing, and was asked for the {source}.")
