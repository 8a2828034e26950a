"""One pass over an array on the workers, looking for values that must not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import Any

import dask
import dask.array as da
import numpy as np

from workbench.errors import PlanError, RunError

_POLL_S = 0.02


@dataclass(frozen=True)
class Offenders:
    """How many values are bad, and the index and value of the first in order of the index."""

    count: int
    index: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Rule:
    """Which values are bad: those that are not finite, or labels outside ``0 <= label < classes``.

    ``ignored`` is a label that is right wherever it stands.
    """

    classes: int | None = None
    ignored: int | None = None

    def bad(self, values: np.ndarray) -> np.ndarray:
        """Return where ``values`` are bad."""
        if self.classes is None:
            return ~np.isfinite(values)
        bad = (values < 0) | (values >= self.classes)
        return bad if self.ignored is None else bad & (values != self.ignored)


def scan(
    arrays: Mapping[str, tuple[da.Array, Rule]],
    client: Any = None,
    timeout_s: float = 600,
    stop: Event | None = None,
) -> dict[str, Offenders]:
    """Return the offenders of each array that has any.

    Every chunk is looked at once, where it is made. ``client`` is a Dask client; without one,
    Dask's current scheduler does it. With a client, setting ``stop`` ends the search.

    Raises
    ------
    PlanError
        if the workers need longer than ``timeout_s``.
    RunError
        if it was stopped.
    """
    tasks = {
        name: [
            dask.delayed(_scan_chunk)(block, offset, rule)
            for block, offset in zip(array.to_delayed().ravel(), _offsets(array), strict=True)
        ]
        for name, (array, rule) in arrays.items()
    }
    results = _compute(tasks, client, timeout_s, stop or Event())
    merged = {name: _merge(found) for name, found in results.items()}
    return {name: offenders for name, offenders in merged.items() if offenders}


def _compute(
    tasks: dict, client: Any, timeout_s: float, stop: Event
) -> dict[str, Sequence[Offenders | None]]:
    if client is None:
        (results,) = dask.compute(tasks)
        return results
    future = client.compute(dask.delayed(tasks))
    deadline = monotonic() + timeout_s
    try:
        while not future.done():
            if stop.wait(_POLL_S):
                raise RunError("Looking through the data was stopped.")
            if monotonic() > deadline:
                raise PlanError(f"Looking through the data took longer than {timeout_s:g} s.")
        return future.result(timeout=timeout_s)
    finally:
        future.cancel()


def _offsets(array: da.Array) -> list[tuple[int, ...]]:
    starts = [np.cumsum((0, *sizes[:-1])) for sizes in array.chunks]
    grid = np.meshgrid(*starts, indexing="ij")
    return [tuple(int(n) for n in where) for where in zip(*(g.ravel() for g in grid), strict=True)]


def _scan_chunk(block: np.ndarray, offset: tuple[int, ...], rule: Rule) -> Offenders | None:
    bad = rule.bad(block)
    count = int(bad.sum())
    if not count:
        return None
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    index = tuple(int(n) + start for n, start in zip(first, offset, strict=True))
    return Offenders(count, index, block[first].item())


def _merge(found: Sequence[Offenders | None]) -> Offenders | None:
    offenders = [each for each in found if each is not None]
    if not offenders:
        return None
    first = min(offenders, key=lambda each: each.index)
    return Offenders(sum(each.count for each in offenders), first.index, first.value)
