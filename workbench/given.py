"""What a model is given: one array or several, in the order of its arguments or by their names.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workbench.errors import PlanError

Value = TypeVar("Value")


def parted(x: Any, what: str) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return the arrays that ``x`` is, one or several, and their names if it is a mapping.

    ``what`` is what sentences call it. A tuple or a list without any array in it is one value.

    Raises
    ------
    PlanError
        If it holds nothing, tuples of arrays, or keys that are no names of arguments.
    """
    if not isinstance(x, tuple | list | Mapping):
        return (x,), ()
    values = _values(x)
    if not values:
        raise PlanError(
            f"{what} is an empty {type(x).__name__}; give one array, or a tuple of the arrays that "
            "the model takes, in the order of its arguments."
        )
    names = tuple(x) if isinstance(x, Mapping) else ()
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise PlanError(
                f"{what} has the key {name!r}, which is no name of an argument; give arrays by the "
                "names of the model's arguments, or a tuple of arrays in their order."
            )
    for title, value in zip(titles(len(values), names, what), values, strict=True):
        if any(map(_is_array, _values(value))):
            raise PlanError(
                f"{title} is a {type(value).__name__} of arrays; a model's inputs are arrays in "
                "one flat tuple, in the order of its arguments."
            )
    if not names and not any(map(_is_array, values)):
        return (x,), ()
    return values, names


def _values(x: Any) -> tuple[Any, ...]:
    if isinstance(x, Mapping):
        return tuple(x.values())
    return tuple(x) if isinstance(x, tuple | list) else ()


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def titles(number: int, names: Sequence[str] = (), what: str = "x") -> tuple[str, ...]:
    """Return what sentences call a model's inputs: ``x``; ``x[0]``, ``x[1]``; or ``x['mask']``."""
    if names:
        return tuple(f"{what}[{name!r}]" for name in names)
    return (what,) if number == 1 else tuple(f"{what}[{place}]" for place in range(number))


def listed(values: Sequence[object]) -> str:
    """Return several values as a list in words: ``a``, ``a and b``, ``a, b and c``."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def share_name(place: int, which: str = "") -> str:
    """Return what ranks call the input at ``place``: ``x``, then ``x[1]``; ``which`` is before."""
    return f"{which}x[{place}]" if place else f"{which}x"


def by_share_name(inputs: Sequence[Value], which: str = "") -> dict[str, Value]:
    """Return inputs by what ranks call them."""
    return {share_name(place, which): value for place, value in enumerate(inputs)}


def inputs_among(arrays: Mapping[str, Value], which: str = "") -> list[Value]:
    """Return a model's inputs, in order, of all arrays that a rank has."""
    found: list[Value] = []
    while (name := share_name(len(found), which)) in arrays:
        found.append(arrays[name])
    return found


@dataclass(frozen=True)
class ByName:
    """A hook before a model's forward pass: gives it by name what it is given in order."""

    names: tuple[str, ...]

    def __call__(
        self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return no arguments in order, and all of them by name."""
        return (), {**dict(zip(self.names, args, strict=False)), **kwargs}
