"""Timed pieces of a step on one rank, cheaply recorded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, get_args

Kind = Literal["compute", "comm", "wait", "optimizer", "load", "overhead"]
KINDS: tuple[str, ...] = get_args(Kind)
"""What a step's time goes to; overhead is what is none of the others."""

CAPACITY = 20_000
MOST_KEPT = 100_000
"""Spans of one rank that are kept of a run: the newest."""


@dataclass(frozen=True, slots=True)
class Span:
    """A timed piece of a step: seconds of the host's monotonic clock, bytes that the rank sent."""

    step: int
    kind: str
    name: str
    start_s: float
    stop_s: float
    sent_bytes: int = 0


class SpanRecorder:
    """Cuts a rank's time into spans that touch and never overlap.

    Whatever is not named otherwise is ``overhead``. With ``enabled=False`` nothing is kept. At most
    ``CAPACITY`` spans wait to be taken; older ones are dropped and counted.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.step = 0
        self.dropped = 0
        self._spans: deque[Span] = deque(maxlen=CAPACITY)
        self._free_since = perf_counter()
        self._free: tuple[Kind, str] = "overhead", ""

    def begin_step(self, step: int, since_s: float) -> None:
        """Start a step: time before ``since_s`` belongs to no span."""
        self.step = step
        self._free_since = since_s

    def end_step(self, stop_s: float) -> None:
        """End a step: the time since the last span is one."""
        self._fill(stop_s)

    def add(self, kind: str, name: str, start_s: float, stop_s: float, sent_bytes: int = 0) -> None:
        """Record a piece (also called by the communicator)."""
        if self.enabled:
            self._fill(start_s)
            self._append(Span(self.step, kind, name, start_s, stop_s, sent_bytes))
            self._free_since = stop_s

    @contextmanager
    def within(self, kind: Kind, name: str = "") -> Iterator[None]:
        """Record the body as spans of a kind, but for the pieces that are added meanwhile."""
        self._fill(perf_counter())
        before, self._free = self._free, (kind, name)
        yield
        self._fill(perf_counter())
        self._free = before

    def take(self) -> list[Span]:
        """Return the spans recorded since the last call."""
        taken = list(self._spans)
        self._spans.clear()
        return taken

    def _fill(self, until_s: float) -> None:
        if self.enabled and until_s > self._free_since:
            self._append(Span(self.step, *self._free, self._free_since, until_s))
            self._free_since = until_s

    def _append(self, span: Span) -> None:
        self.dropped += len(self._spans) == CAPACITY
        self._spans.append(span)
