"""What code does with arrays of another size: numbers and shapes that do not follow a cut dim.

Labels cannot see that ``x / x.shape[2]`` divides by another number on a share. So the code runs
once more, where every labelled dim has another size throughout: twice as many rows, or half, as on
two ranks. Layers that answer for themselves are not run; arrays of the right sizes stand in for
what they return. Numbers have to be those of the first pass, and sizes have to follow the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from workbench.nested import over_tensors, tensors_in
from workbench.traced import Adapted, Flat, Label, Mix, Resized
from workbench.tracking.naming import user_name
from workbench.tracking.positions import MetAgain, Positions
from workbench.tracking.sizes import CallSizes, Fitting, Frame, Place, resized
from workbench.tracking.tags import Even, Lost, Merged, Names, Tag, Tags, labels_in
from workbench.tracking.watch import Event, Literals, Watch

Scale = Callable[[str, int], int]
"""The other size of a dim, from its label and its size."""

_LAYOUT = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "expand", "permute", "alias"),
    *("transpose", "t", "detach", "unsqueeze", "squeeze", "contiguous"),
}
"""Operations that torch adds or leaves out as sizes and strides suit it."""

_FACTORIES = {"full", "arange", "linspace", "scalar_tensor", "logspace", "lift_fresh", "tensor"}


@dataclass
class Spec:
    """A tensor that stands in a result of the first pass: its shape, tags and type.

    Of an array that keeps its size also the values, if there are any: code may look at them.
    """

    shape: tuple[int, ...]
    tags: Tags
    dtype: torch.dtype
    device: torch.device
    gradient: bool
    value: Tensor | None = None

    def stand_in(self, scale: Scale) -> Tensor:
        """Return an array of the other sizes."""
        shape = [scaled(tag, n, scale) for n, tag in zip(self.shape, self.tags, strict=True)]
        if self.value is not None and shape == list(self.shape):
            found = self.value.clone()
        else:
            found = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return found.requires_grad_(self.gradient)


def spec_of(value: Any, tags: Callable[[Tensor], Tags]) -> Any:
    """Return ``value`` with every tensor in it as its :class:`Spec`."""

    def spec(tensor: Tensor) -> Spec:
        known, x = tags(tensor), tensor.detach()
        kept = None if x.is_meta or labels_in(known) else x.clone()
        return Spec(tuple(x.shape), known, x.dtype, x.device, tensor.requires_grad, kept)

    return over_tensors(value, spec)


def stand_ins(value: Any, scale: Scale) -> Any:
    """Return what :func:`spec_of` was given, with arrays of the other sizes."""
    # No leaves: code may go on in place.
    return over_tensors(value, lambda spec: spec.stand_in(scale).clone(), Spec)


def scaled(tag: Tag, size: int, scale: Scale) -> int:
    """Return the other size of a dim with ``tag``."""
    if isinstance(tag, Merged | Flat):
        parts = [scaled(part, rows, scale) for part, rows in tag.parts]
        return sum(parts) if tag.beside else prod(parts)
    if isinstance(tag, str) and tag:
        return scale(tag, size)
    return size


@dataclass
class Pass:
    """What the first pass has shown, as far as others are to be compared with it."""

    model: nn.Module
    inputs: Sequence[Spec]
    names: dict[nn.Module, str]
    calls: dict[nn.Module, list[Any]]
    events: Sequence[Event]
    mixes: Sequence[Mix]
    labels: tuple[str, ...]
    agreed: Names
    adapted: tuple[Adapted, ...] = ()
    sizes: Mapping[nn.Module, Sequence[CallSizes]] = field(default_factory=dict)
    places: set[Place] = field(default_factory=set)
    positions: Positions = field(default_factory=Positions)


def other_sizes(first: Pass) -> tuple[list[Mix], tuple[Resized, ...]]:
    """Return what does not follow the sizes of labelled dims, and sizes that have to be put right.

    Labels that the first pass found mixed are compared in their numbers only: their arrays have
    gone whole on the way.
    """
    mixed = {name for mix in first.mixes for name in first.agreed.all(mix.labels)}
    clean = tuple(label for label in first.labels if label not in mixed)
    found: list[Mix] = []
    rest = tuple(label for label in first.labels if label in mixed)
    for labels, strict in ((clean, True), (rest, False)):
        if labels:
            found += _compared(first, labels, _twice, strict) or _compared(
                first, labels, _half, strict
            )
    return found, resized(first.names, first.sizes, first.places, first.agreed)


def _twice(places: dict[str, int], agreed: Names) -> Scale:
    """Two, three, five, ... times as many rows, so that no two dims of an array grow alike."""
    factors = (2, 3, 5, 7, 11, 13)

    def scale(label: str, size: int) -> int:
        place = places.get(agreed.find(label))
        return size if place is None else size * factors[place % len(factors)]

    return scale


def _half(places: dict[str, int], agreed: Names) -> Scale:
    units = dict(agreed.units)

    def scale(label: str, size: int) -> int:
        name = agreed.find(label)
        if name not in places:
            return size
        pieces = units.get(name, size) or 1  # such as heads, which go as a whole
        return size // pieces * -(-pieces // 2)

    return scale


def _compared(
    first: Pass, labels: Sequence[str], make: Callable[[dict[str, int], Names], Scale], strict: bool
) -> list[Mix]:
    """Run with all ``labels`` of another size; where that shows, find out which it was."""
    scale = make({name: i for i, name in enumerate(labels)}, first.agreed)
    together = _findings(first, labels, scale, strict)
    if not together or len(labels) == 1:
        return together
    by_place: dict[Mix, tuple[Label, ...]] = {}
    half = len(labels) // 2  # most of many labels are harmless, and are so together
    for some in (labels[:half], labels[half:]):
        for mix in _compared(first, some, make, strict):
            key = replace(mix, labels=())
            by_place[key] = (*by_place.get(key, ()), *mix.labels)
    return [replace(mix, labels=found) for mix, found in by_place.items()] or together


def _findings(first: Pass, labels: Sequence[Label], scale: Scale, strict: bool) -> list[Mix]:
    second = _Second(first, scale)
    error = second.run(fitting=strict)
    found = list(_differences(first.events, second.watch.events, labels, scale, strict))
    if error and strict and not found:
        layer, kind = second.where()
        found.append(Mix(layer, kind, error, tuple(labels), "take sizes from x.shape"))
    if not found and not error:
        first.places |= second.fitting.fitted
    return found


def _differences(
    one: Sequence[Event],
    other: Sequence[Event],
    labels: Sequence[Label],
    scale: Scale,
    strict: bool,
) -> Iterator[Mix]:
    if any(a.name != b.name for a, b in zip(one, other, strict=False)):
        one = [event for event in one if event.name not in _LAYOUT]
        other = [event for event in other if event.name not in _LAYOUT]
    seen = set()
    for a, b in zip(one, other, strict=False):
        if (a.name, a.layer) != (b.name, b.layer):
            if strict:
                what = "another way through the code for another size"
                yield Mix(a.layer, a.kind, what, tuple(labels), "let it not depend on x.shape")
            return
        if not strict and a.name in _FACTORIES:
            continue
        what, computed = "", a.numbers is not None and a.numbers != b.numbers
        if computed:
            what = f"{a.said} with a number computed from the size of {_spoken(labels)}"
            advice = "compute it from what is cut, or write the number"
        elif strict and not _follows(a, b, scale):
            what = f"{a.said} of an array whose size does not follow {_spoken(labels)}"
            advice = "take sizes from x.shape, and let arrays that are not cut keep theirs"
        if what and (a.layer, what) not in seen:
            seen.add((a.layer, what))
            yield Mix(a.layer, a.kind, what, tuple(labels), advice)
            if strict and not computed:
                return  # the rest follows from it


def _spoken(labels: Sequence[Label]) -> str:
    return "the image" if len(labels) > 1 else f"dim {str(labels[0]).removeprefix('dim')}"


def _follows(one: Event, other: Event, scale: Scale) -> bool:
    """Return whether the arrays of an operation have the sizes that their tags ask for."""
    return all(
        a is not None
        and b is not None
        and len(a[0]) == len(b[0])
        and all(
            isinstance(tag, Lost)
            or (isinstance(tag, Even) and one.even)
            or now == scaled(tag, size, scale)
            for size, tag, now in zip(*a, b[0], strict=True)
        )
        for ours, theirs in ((one.arguments, other.arguments), (one.results, other.results))
        for a, b in zip_longest(ours, theirs)
    )


class _Second:
    """One more pass, in which arrays of other sizes stand in for what layers return."""

    def __init__(self, first: Pass, scale: Scale) -> None:
        self.first, self.scale = first, scale
        self.watch = Watch()
        self.watch.where = self.where
        self.stack: list[Frame] = []
        self.calls: dict[nn.Module, int] = {}
        self.fitting = Fitting(first.sizes, scale, self._frame)
        self.met = MetAgain(first.positions, self._here, self._unwatched)

    def where(self) -> tuple[str, str]:
        """Return name and class of the module whose ``forward`` runs."""
        module = self.stack[-1].module if self.stack else self.first.model
        return self.first.names[module], type(module).__name__

    def _frame(self) -> Frame | None:
        return self.stack[-1] if self.stack and not self.watch.blind else None

    def _here(self) -> tuple[str, Frame] | None:
        frame = self._frame()
        return None if frame is None else (self.first.names[frame.module], frame)

    def run(self, fitting: bool) -> str:
        """Run, with sizes put right if ``fitting``; returns what went wrong, or ""."""
        with self._standing_in(), self._adapted():
            inputs = [spec.stand_in(self.scale) for spec in self.first.inputs]
            try:
                with (
                    self.watch,
                    Literals(self.watch),
                    self.fitting if fitting else nullcontext(),
                    self.met,
                ):
                    output = self.first.model(*inputs)
            except Exception as error:
                if self.watch.running is not None:
                    name = user_name(self.watch.running._schema.name.partition("::")[2])
                    return f"{name}, with a size written as a number"
                text = (str(error).strip().splitlines() or [type(error).__name__])[0]
                return f"a size that is checked, or written as a number: {text.rstrip('.')}"
            self.watch.events.append(output_event(output))
        return ""

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        hooks = []
        own = {}
        for module in self.first.names:
            if module in self.first.calls:
                own[module] = module.__dict__.get("forward")
                module.forward = self._stand_in(module)
            else:
                hooks += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave, prepend=True),
                ]
        try:
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:
                    module.forward = forward
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """Let modules keep the numbers that go with the other sizes."""
        modules = {name: module for module, name in self.first.names.items()}
        own = {(a.module, a.attribute): a.size for a in self.first.adapted}
        for a in self.first.adapted:
            setattr(modules[a.module], a.attribute, self.scale(a.label, a.size))
        try:
            yield
        finally:
            for (module, attribute), size in own.items():
                setattr(modules[module], attribute, size)

    def _enter(self, module: nn.Module, _args: Any) -> None:
        call = self.calls[module] = self.calls.get(module, -1) + 1
        self.stack.append(Frame(module, call))

    def _leave(self, module: nn.Module, _args: Any, output: Any) -> Any:
        while (frame := self.stack.pop()).module is not module:
            pass
        if self.first.names[module] not in self.first.positions.gathered:
            return None
        with self._unwatched():  # all positions again
            return stand_ins(self.first.positions.results[module][frame.call], self.scale)

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        self.watch.blind += 1
        try:
            yield
        finally:
            self.watch.blind -= 1

    def _stand_in(self, module: nn.Module) -> Callable[..., Any]:
        calls = iter(self.first.calls[module])

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.watch.events.append(call_event(module, *self.where(), [*args, kwargs]))
            with self._unwatched():
                value = next(calls, calls)
                if value is calls:
                    raise RuntimeError(f"{type(module).__name__} is called more often")
                return stand_ins(value, self.scale)

        return forward


def call_event(
    module: nn.Module,
    layer: str,
    kind: str,
    args: Sequence[Any],
    tags: Callable[[Tensor], Tags] = lambda x: ("",) * x.dim(),
) -> Event:
    """Return the event of a call of a layer that is not watched inside."""
    name = type(module).__name__
    arrays = tuple((tuple(x.shape), tags(x)) for x in tensors_in(list(args)))
    return Event(f"call of {name}", layer, kind, name, arguments=arrays)


def output_event(output: Any, tags: Callable[[Tensor], Tags] = lambda x: ("",) * x.dim()) -> Event:
    """Return the event in which the model returns."""
    arrays = tuple((tuple(x.shape), tags(x)) for x in tensors_in(output))
    return Event("return", "", "", "return", arguments=arrays)
