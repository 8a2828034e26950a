"""What works instead of a pipeline into whose stages a model cannot be cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from workbench.errors import PlanError

MOST_TRIES = 4
"""Of fewer ranks; each is a plan by itself."""

Attempt = Callable[[str, Mapping[str, Any]], object]
"""Plan a strategy with options; raises PlanError if that cannot be."""


class Undivided(PlanError):
    """A model has too few places to be cut at; the sentence is not ended yet.

    Parameters
    ----------
    ranks, chunks:
        Ranks along the pipeline, and stages that each of them is to have.
    most:
        Stages into which it can be cut at most.
    """

    def __init__(self, sentence: str, ranks: int, chunks: int, most: int) -> None:
        super().__init__(sentence)
        self.ranks, self.chunks, self.most = ranks, chunks, most


def instead(attempt: Attempt, strategy: str, options: Mapping[str, Any], error: Undivided) -> str:
    """Return the nearest that works, in words: what is tried in turn, until something does.

    Parameters
    ----------
    strategy:
        As it is written, such as ``"data=2,pipeline=4"``.
    """
    ranks, chunks, most = error.ranks, error.chunks, error.most
    free = {name: value for name, value in options.items() if name != "split_at"}
    alone = {name: value for name, value in free.items() if name not in ("schedule", "chunks")}

    def with_axis(axis: str, degree: int) -> str:
        return re.sub(r"pipeline=\d+", f"{axis}={degree}", strategy)

    changes: list[tuple[str, str, Mapping[str, Any]]] = []
    for fewer in range(min(chunks - 1, most // ranks), 1, -1):
        changes.append((f"chunks={fewer}", strategy, {**free, "chunks": fewer}))
    if chunks > 1 and ranks <= most:
        words = "schedule='1f1b', with one stage for each rank"
        changes.append((words, strategy, {**alone, "schedule": "1f1b"}))
    for degree in islice(range(min(ranks - 1, most // chunks), 1, -1), MOST_TRIES):
        other = with_axis("pipeline", degree)
        changes.append((other, other, free))
    if chunks > 1:
        for degree in islice(range(min(ranks - 1, most), 1, -1), MOST_TRIES):
            other = with_axis("pipeline", degree)
            words = f"{other} with schedule='1f1b'"
            changes.append((words, other, {**alone, "schedule": "1f1b"}))
    for axis in ("tensor", "data"):
        other = with_axis(axis, ranks)
        changes.append((other, other, alone))
    for words, other, chosen in changes:
        try:
            attempt(other, chosen)
        except PlanError:
            continue
        return words
    return "serial"
