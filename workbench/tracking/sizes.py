"""Sizes that code gives as numbers, noted when the model is watched and tried with other sizes.

What such a size has to be on a share follows from the labels of what the call returns. Where code
gives that by itself (``-1``, ``x.shape[1]`` of an array that is cut) there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.layers.sizes import TAKE_SIZES, Given, Parts, fitted, given_to
from workbench.traced import Resized, Size
from workbench.tracking.operation import tags_of
from workbench.tracking.tags import Merged, Names, Tag, Tags


def _parts(given: Given, argument: Tags, results: Sequence[Tensor]) -> tuple[Parts, ...]:
    """Return what sizes count, given the tags of the array and the results."""
    found = []
    for number, dim in enumerate(given.dims):
        tags = argument
        if not given.of_argument:
            tags = tags_of(results[number if given.each else 0])
        tag: Tag = tags[dim] if dim < len(tags) else ""
        if given.of_argument and not isinstance(tag, Merged):
            tag = ""  # a part of a dim that is cut: nobody can do that on a share
        found.append(_labelled(tag))
    return tuple(found)


def _labelled(tag: Tag) -> Parts:
    """Return the labels that a dim carries, with their sizes; 0 for all of the dim."""
    if isinstance(tag, Merged) and tag.beside:
        tag = tag.parts[0][0]
    if isinstance(tag, Merged):
        return tuple((part, n) for part, n in tag.parts if isinstance(part, str) and part)
    return ((tag, 0),) if isinstance(tag, str) and tag.startswith("out:") else ()


@dataclass(frozen=True)
class Noted:
    """What is kept of one call: the function, its sizes and what they count."""

    function: str
    sizes: tuple[int, ...]
    parts: tuple[Parts, ...]


@dataclass
class CallSizes:
    """The calls of such functions in one call of a module, and the modules called in it.

    ``met`` counts those of functions in which two arrays meet.
    """

    noted: list[Noted] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    met: int = 0


class Noting(TorchFunctionMode):
    """Notes the sizes that the code of modules gives; ``call`` is where, None to look away."""

    def __init__(self, call: Callable[[], CallSizes | None]) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = self.call() if func in TAKE_SIZES else None
        given = given_to(func, args, kwargs) if call is not None else None
        if call is None or given is None:
            return func(*args, **kwargs)
        argument = tags_of(args[0])
        result = func(*args, **kwargs)
        results = [result] if isinstance(result, Tensor) else list(result)
        call.noted.append(Noted(given.function, given.sizes, _parts(given, argument, results)))
        return result


Place = tuple[nn.Module, int, int, int]
"""Module, number of its call, number of the function's call in that, place of the size."""


class Fitting(TorchFunctionMode):
    """In a pass with arrays of other sizes, puts sizes right that have stayed those of the first.

    ``frame`` says in which call of which module the code stands, and counts the functions in it.
    """

    def __init__(
        self,
        noted: Mapping[nn.Module, Sequence[CallSizes]],
        scale: Callable[[str, int], int],
        frame: Callable[[], Frame | None],
    ) -> None:
        super().__init__()
        self.noted, self.scale, self.frame = noted, scale, frame
        self.fitted: set[Place] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        frame = self.frame() if func in TAKE_SIZES else None
        given = given_to(func, args, kwargs) if frame is not None else None
        if frame is None or given is None:
            return func(*args, **kwargs)
        number, frame.functions = frame.functions, frame.functions + 1
        calls = self.noted.get(frame.module, ())
        found = calls[frame.call].noted if frame.call < len(calls) else []
        if number >= len(found) or found[number].function != given.function:
            return func(*args, **kwargs)
        first, sizes = found[number], list(given.sizes)
        if len(first.sizes) != len(sizes):
            return func(*args, **kwargs)
        for place, parts in enumerate(first.parts):
            before, now = first.sizes[place], sizes[place]
            fits = fitted(before, parts, self.scale)
            stale = fitted(before, parts, self._of_positions)
            if now == stale and now != fits:
                sizes[place] = fits
                self.fitted.add((frame.module, frame.call, number, place))
        if tuple(sizes) == given.sizes:
            return func(*args, **kwargs)
        args, kwargs = given.put(sizes)
        return func(*args, **kwargs)

    def _of_positions(self, label: str, size: int) -> int:
        return size if label.startswith("out:") else self.scale(label, size)


@dataclass
class Frame:
    """A call of a module that runs: which of its calls, and how many functions it has called."""

    module: nn.Module
    call: int
    functions: int = 0
    met: int = 0


def resized(
    names: Mapping[nn.Module, str],
    noted: Mapping[nn.Module, Sequence[CallSizes]],
    places: Iterable[Place],
    agreed: Names,
) -> tuple[Resized, ...]:
    """Return the modules in whose calls sizes have to be put right, and which."""
    by_module: dict[nn.Module, dict[int, set[tuple[int, int]]]] = {}
    for module, call, number, place in places:
        by_module.setdefault(module, {}).setdefault(call, set()).add((number, place))
    found = []
    for module, calls in by_module.items():
        inside = dict.fromkeys(name for call in noted[module] for name in call.inside)
        sizes: dict[tuple[int, int], Size] = {}
        for call, at in calls.items():
            for number, place in at:
                what = noted[module][call].noted[number]
                size = what.sizes[place]
                parts = tuple((agreed.find(name), n or size) for name, n in what.parts[place])
                sizes[number, place] = Size(number, what.function, place, parts)
        in_order = tuple(sizes[at] for at in sorted(sizes))
        found.append(Resized(names[module], tuple(inside), in_order))
    return tuple(found)
