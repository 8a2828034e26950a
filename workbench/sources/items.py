"""Anything with ``__getitem__`` and ``__len__``, such as a torch ``Dataset``."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import PlanError
from workbench.sources.source import Source

MOST_BYTES = 16 * 2**20
"""Pickled size of an object that is sent to every worker."""


@dataclass(frozen=True)
class Items(Source):
    """One part of every item of a pickled object; ``key`` is its place in the item, or None."""

    pickled: bytes
    kind: str
    key: int | str | None

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return items ``start`` to ``stop``, of the other dims the ``rest``."""
        items = _loaded(self.pickled)
        result = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for place, number in enumerate(range(start, stop)):
            part = np.asarray(_part(items[number], self.key))
            if part.shape != self.shape[1:]:
                raise PlanError(
                    f"Item {number} of the {self.kind} has the shape {part.shape} and item 0 "
                    f"{self.shape[1:]}; all must be alike."
                )
            result[place] = part
        return result[(slice(None), *rest)]


def find_items(items: Any) -> dict[str, Source]:
    """Return the parts of every item: of pairs ``"x"`` and ``"y"``, of dicts their keys.

    Item 0 is made here to learn the shapes; the others where they are needed.

    Raises
    ------
    PlanError
        If the object cannot be sent to workers, is large, or its items are no arrays.
    """
    from workbench import pickling

    kind = type(items).__name__
    count = len(items)
    if not count:
        raise PlanError(f"The {kind} has no items.")
    pickled = pickling.dump({"items": items})
    if len(pickled) > MOST_BYTES:
        raise PlanError(
            f"The {kind} carries {len(pickled) / 2**20:,.0f} MiB of data, which would go to every "
            f"worker; save its arrays as .npy and give those, or have it open its files when an "
            f"item is asked for."
        )
    first = items[0]
    if isinstance(first, dict):
        keys: dict[str, Any] = {str(key): key for key in first}
    elif isinstance(first, tuple | list):
        keys = {name: n for n, name in enumerate(("x", "y", "z")[: len(first)])}
    else:
        keys = {"x": None}
    found: dict[str, Source] = {}
    for name, key in keys.items():
        part = np.asarray(_part(first, key))
        if part.dtype.kind not in "biuf":
            raise PlanError(
                f"Item 0 of the {kind} has {name} of {part.dtype}; items must be arrays of numbers."
            )
        found[name] = Items((count, *part.shape), part.dtype.str, 1, pickled, kind, key)
    return found


def _part(item: Any, key: int | str | None) -> Any:
    return item if key is None else item[key]


@lru_cache(maxsize=4)
def _loaded(pickled: bytes) -> Any:
    return pickle.loads(pickled)["items"]
