"""What has been measured of a run: its steps and spans, while it goes on and when it is read back.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from statistics import median
from typing import Any, Protocol

from workbench.spans import MOST_KEPT

Row = dict[str, float]
SpanRow = dict[str, Any]
WARM_UP_STEPS = 3


class Planned(Protocol):
    """What is asked of the plan of a run: how it is cut, and for how many ranks."""

    @property
    def strategy(self) -> str:
        """As it is written: ``"data=2"``."""

    @property
    def ranks(self) -> int:
        """How many there are."""


class Measured:
    """The record of one run; several threads may read it while one writes.

    Attributes
    ----------
    steps:
        How many were asked for.
    dropped_spans:
        Spans that are not in ``spans``, which holds the newest 100,000 of each rank.
    peak_memory_bytes:
        Measured, by rank, as it goes on: the most resident memory that the rank's process had
        for itself during the steps, above what it had before its model was made; on a GPU, what
        torch has allocated.
    """

    warm_up_steps = WARM_UP_STEPS

    def __init__(self, plan: Planned, *, steps: int, threads: int) -> None:
        self.plan, self.steps, self.threads = plan, steps, threads
        self.dropped_spans = 0
        self.peak_memory_bytes: tuple[int, ...] = ()
        self._rows: list[Row] = []
        self._spans: list[SpanRow] = []
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """The strategy, and the threads per rank: ``"data=2, 1 thread"``."""
        return f"{self.plan.strategy}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def history(self) -> list[Row]:
        """One row per finished step: times in seconds (means over the ranks), loss, bytes sent.

        About every twentieth part of a run has ``accuracy`` too, where targets are classes: the
        share of its own training batch that the model got right, before that step's update.
        """
        with self._lock:
            return list(self._rows)

    @property
    def spans(self) -> list[SpanRow]:
        """Timed pieces per rank: ``rank, step, kind, name, start_s, stop_s, sent_bytes``."""
        with self._lock:
            return list(self._spans)

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self._rows)

    @property
    def step_s(self) -> float | None:
        """Median seconds of a step, without the first few; None before there are enough."""
        times = [row["step_s"] for row in self.history[WARM_UP_STEPS:]]
        return median(times) if times else None

    @property
    def eta_s(self) -> float | None:
        """Seconds that the steps left will take; None before that can be told."""
        step_s = self.step_s
        return None if step_s is None else step_s * (self.steps - self.step)

    def _add(self, rows: Iterable[Row], spans: Iterable[SpanRow]) -> None:
        with self._lock:
            join(self._rows, rows)
            self._spans += spans
            surplus = max(0, len(self._spans) - MOST_KEPT * self.plan.ranks)
            del self._spans[:surplus]
            self.dropped_spans += surplus


def join(rows: list[Row], news: Iterable[Row]) -> None:
    """Add ``news`` to ``rows``; what is told of a step that is there goes into its row.

    What is told of a step whose row was lost on the way is left out.
    """
    for row in news:
        if "loss" in row:
            rows.append(row)
            continue
        for place in range(len(rows) - 1, -1, -1):  # it is one of the newest
            if rows[place]["step"] == row["step"]:
                rows[place] = {**rows[place], **row}  # who reads it has the old one whole
                break
