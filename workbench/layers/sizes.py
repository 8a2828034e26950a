"""Sizes that code gives as numbers, put right on a rank that has a share of what they count.

Code such as ``x.view(B, T, C)`` and ``qkv.split(C, -1)`` writes sizes of whole arrays, also where
the array has come from a layer that is split. Each such call stands at one place in the code of a
module; the plan says in which of them which sizes count dims that are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.errors import RunError
from workbench.layers.carrier import Forward
from workbench.plan import Plan
from workbench.traced import Resized, Size

_SHAPE: set[Any] = {Tensor.view, Tensor.reshape, Tensor.expand, torch.reshape}
_UNFLATTEN: set[Any] = {Tensor.unflatten, torch.unflatten}
_SPLIT: set[Any] = {Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes}
_NARROW: set[Any] = {Tensor.narrow, torch.narrow}
TAKE_SIZES = {*_SHAPE, *_UNFLATTEN, *_SPLIT, *_NARROW, Tensor.__getitem__}
"""Functions of torch that are given sizes, or places that are sums of them."""

Parts = tuple[tuple[str, int], ...]
Put = Callable[[Sequence[int]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass
class Given:
    """Sizes in one call of such a function, and where to find the dims that they count.

    ``dims`` has for each size a dim: of the one result, of the result with the size's number
    (``each``), or of the array that the function is called on (``of_argument``). ``put`` gives the
    arguments with other sizes.
    """

    function: str
    sizes: tuple[int, ...]
    dims: tuple[int, ...]
    put: Put
    each: bool = False
    of_argument: bool = False


def given_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
    """Return the sizes among the arguments of one of :data:`TAKE_SIZES`; None if it has none."""
    if not args or not isinstance(args[0], Tensor):
        return None
    x, rest = args[0], args[1:]
    name = getattr(func, "__name__", "")
    if func in _SHAPE:
        return _shape(x, rest, kwargs, name)
    if func == Tensor.__getitem__:
        return _slices(x, rest[0], name)
    if kwargs and func not in _SPLIT:
        return None
    if func in _UNFLATTEN and len(rest) == 2 and isinstance(rest[0], int):
        first = rest[0] % x.dim()
        sizes = tuple(rest[1])
        dims = tuple(range(first, first + len(sizes)))
        return Given(name, sizes, dims, lambda new: ((x, first, tuple(new)), {}))
    if func in _NARROW and len(rest) == 3 and all(isinstance(n, int) for n in rest):
        dim = rest[0] % x.dim()
        return Given(name, rest[1:], (dim, dim), lambda new: ((x, dim, *new), {}), of_argument=True)
    return _split(x, rest, kwargs, name) if func in _SPLIT else None


def _shape(x: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Given | None:
    if kwargs:
        key = next(iter(kwargs))
        if len(kwargs) > 1 or rest or key not in ("shape", "size"):
            return None
        rest = (kwargs[key],)
    sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    if not all(isinstance(n, int) for n in sizes):
        return None  # another dtype
    return Given(name, tuple(sizes), tuple(range(len(sizes))), lambda new: ((x, tuple(new)), {}))


def _split(x: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Given | None:
    named = {"split_size_or_sections": "sizes", "split_sizes": "sizes", "split_size": "sizes"}
    found = {named.get(key, key): value for key, value in kwargs.items()}
    found.update(zip(("sizes", "dim"), rest, strict=False))
    sizes, dim = found.get("sizes"), found.get("dim", 0)
    if not isinstance(dim, int):
        return None
    dim %= max(1, x.dim())
    if isinstance(sizes, int):
        return Given(name, (sizes,), (dim,), lambda new: ((x, new[0], dim), {}), each=True)
    if isinstance(sizes, tuple | list) and all(isinstance(n, int) for n in sizes):
        dims = (dim,) * len(sizes)
        return Given(name, tuple(sizes), dims, lambda new: ((x, list(new), dim), {}), each=True)
    return None


def _slices(x: Tensor, index: Any, name: str) -> Given | None:
    items = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(item, slice) for item in items):
        return None
    if any(isinstance(item, Tensor | list | bool) for item in items):
        return None
    used = sum(item is not None and item is not Ellipsis for item in items)
    sizes: list[int] = []
    dims: list[int] = []
    where: list[tuple[int, str]] = []
    dim = 0
    for place, item in enumerate(items):
        if item is Ellipsis:
            dim += x.dim() - used
        elif item is not None:
            if isinstance(item, slice) and item.step in (None, 1):
                for side in ("start", "stop"):
                    if isinstance(getattr(item, side), int):
                        sizes.append(getattr(item, side))
                        dims.append(dim)
                        where.append((place, side))
            dim += 1

    def put(new: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sides = {at: n for at, n in zip(where, new, strict=True)}
        changed = tuple(
            slice(
                sides.get((place, "start"), item.start),
                sides.get((place, "stop"), item.stop),
                item.step,
            )
            if isinstance(item, slice)
            else item
            for place, item in enumerate(items)
        )
        return (x, changed), {}

    return Given(name, tuple(sizes), tuple(dims), put, of_argument=True) if sizes else None


def fitted(size: int, parts: Parts, own: Callable[[str, int], int]) -> int:
    """Return a size on a share: of dims of which there is another number there."""
    if size in (-1, 0) or not parts:
        return size
    wholes = [whole or size for _, whole in parts]
    there = prod(own(label, whole) for (label, _), whole in zip(parts, wholes, strict=True))
    return size * there // prod(wholes)


class Counting(TorchFunctionMode):
    """Counts ``functions`` in the code of one module, that of the modules ``inside`` it aside."""

    def __init__(self, inside: tuple[str, ...]) -> None:
        super().__init__()
        self.inside = inside
        self.functions = 0
        self.away = 0


class _Sizes(Counting):
    """Puts the sizes right that the code of one module gives, in each of its calls."""

    def __init__(self, what: Resized, plan: Plan, rank: int) -> None:
        super().__init__(what.inside)
        self.module, self.rank = what.module, rank
        self.sizes: dict[int, list[Size]] = {}
        for size in what.sizes:
            self.sizes.setdefault(size.number, []).append(size)
        self.own = lambda label, n: _length(plan, label, n, rank)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = None if self.away or func not in TAKE_SIZES else given_to(func, args, kwargs)
        if given is None:
            return func(*args, **kwargs)
        number, self.functions = self.functions, self.functions + 1
        if (wrong := self.sizes.get(number)) is None:
            return func(*args, **kwargs)
        sizes = list(given.sizes)
        for size in wrong:
            if given.function != size.function or size.place >= len(sizes):
                raise RunError(
                    f"The code of module {self.module!r} calls {given.function} where it called "
                    f"{size.function} when the plan was made. Let it not depend on values or on "
                    'where arrays lie; or use "data".',
                    rank=self.rank,
                )
            sizes[size.place] = fitted(sizes[size.place], size.parts, self.own)
        args, kwargs = given.put(sizes)
        return func(*args, **kwargs)


def _length(plan: Plan, label: str, size: int, rank: int) -> int:
    start, stop = plan.share_of_label(label, size, rank)
    return stop - start


def resize(model: nn.Module, plan: Plan, rank: int) -> list[_Sizes]:
    """Have modules of ``model`` whose code gives sizes of whole arrays give those of shares.

    Returns what does so; see :func:`look_away`.
    """
    modes = []
    cut = {label.label for label in plan.cut_labels}
    for what in plan.resized:
        needed = [s for s in what.sizes if any(label in cut for label, _ in s.parts)]
        if needed:
            mode = _Sizes(Resized(what.module, what.inside, tuple(needed)), plan, rank)
            module = model.get_submodule(what.module)
            module.forward = inside(module.forward, mode)
            modes.append(mode)
    return modes


def look_away(model: nn.Module, modes: Sequence[Counting]) -> None:
    """Leave alone the code of modules that such code calls, once their forward is what it is."""
    for mode in modes:
        for name in mode.inside:
            inner = model.get_submodule(name)
            inner.forward = _away(inner.forward, mode)


def inside(forward: Forward, mode: Counting) -> Forward:
    """Return ``forward`` so that ``mode`` sees what it calls, from the first function on."""

    def run(*args: Any, **kwargs: Any) -> Any:
        before, mode.functions = (mode.functions, mode.away), 0
        mode.away = 0
        try:
            with mode:
                return forward(*args, **kwargs)
        finally:
            mode.functions, mode.away = before

    return run


def _away(forward: Forward, mode: Counting) -> Forward:
    """Return the ``forward`` of a module that is called there: its code is its own."""

    def run(*args: Any, **kwargs: Any) -> Any:
        mode.away += 1
        try:
            return forward(*args, **kwargs)
        finally:
            mode.away -= 1

    return run
