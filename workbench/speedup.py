"""From timed runs to a table of speedups, each with its spread and its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from workbench.spans import KINDS

FEWEST_STEPS = 3
"""Measured steps, after warming up, before a repeat says anything."""

START_S = 0.4
"""About what it takes to start a run's ranks and to score its result."""


class Timed(Protocol):
    """What a row needs of a run."""

    @property
    def step_s(self) -> float | None:
        """Median seconds per step."""

    @property
    def step(self) -> int:
        """Number of finished steps."""

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per step."""

    accuracy: float | None
    warm_up_steps: int
    folder: Path


@dataclass
class Entry:
    """One line of a comparison: a strategy with its threads, and its runs, one per repeat.

    ``proof`` says what ``same_result`` rests on, or why it is false without one.
    """

    strategy: str
    ranks: int
    threads: int
    device: str
    bytes_per_step: int
    runs: list[Timed] = field(default_factory=list)
    backend: str = ""
    same_result: bool | None = None
    proof: str = ""
    max_difference: float | None = None
    complete: bool = False

    @property
    def baseline(self) -> str:
        """How this line is named where it is a baseline: processes and threads."""
        return f"{_count(self.ranks, 'process', 'processes')} × {_count(self.threads, 'thread')}"


def step_times(entry: Entry) -> list[float | None]:
    """Return the median seconds of a step for each repeat; None where there is too little yet."""
    return [
        run.step_s if len(run.history) >= run.warm_up_steps + FEWEST_STEPS else None
        for run in entry.runs
    ]


def rows(entries: Sequence[Entry], all_threads: Entry) -> list[dict[str, Any]]:
    """Return the lines of the table that have something to show.

    ``entries[0]`` is the baseline of one process with one thread; ``all_threads`` is one process
    with as many threads as the strategies have cores. A speedup is the median over repeats of the
    ratio to the baseline's run in the same repeat, since a machine drifts.
    """
    base = step_times(entries[0])
    whole = step_times(all_threads)
    return [
        _row(entry, entries[0], base, whole)
        for entry in entries
        if any(time is not None for time in step_times(entry))
    ]


def seconds_left(entries: Sequence[Entry], steps: int, repeats: int) -> float | None:
    """Return how long the rest of a comparison takes, by the steps so far; None without any."""
    last = [entry.runs[-1].step_s if entry.runs else None for entry in entries]
    known = [step_s for step_s in last if step_s is not None]
    if not known:
        return None
    usual_s = sum(known) / len(known)
    left_s = 0.0
    for entry, step_s in zip(entries, last, strict=True):
        left_s += (steps * repeats - sum(run.step for run in entry.runs)) * (step_s or usual_s)
        left_s += START_S * (repeats - len(entry.runs))
    return left_s


def _row(
    entry: Entry, baseline: Entry, base: list[float | None], whole: list[float | None]
) -> dict[str, Any]:
    times = step_times(entry)
    known = [t for t in times if t is not None]
    speedups = _ratios(base, times)
    over_threads = _ratios(whole, times)
    shares = _shares(entry)
    return {
        "strategy": entry.strategy,
        "ranks": entry.ranks,
        "threads": entry.threads,
        "device": entry.device,
        "backend": entry.backend,
        "step_s": median(known),
        "step_s_min": min(known),
        "step_s_max": max(known),
        "speedup": median(speedups) if speedups else None,
        "speedup_min": min(speedups, default=None),
        "speedup_max": max(speedups, default=None),
        "baseline": baseline.baseline,
        "speedup_all_threads": median(over_threads) if over_threads else None,
        **shares,
        "bytes_per_step": entry.bytes_per_step,
        "loss": next((r.history[-1].get("loss") for r in entry.runs[::-1] if r.history), None),
        "same_result": entry.same_result,
        "proof": entry.proof,
        "max_difference": entry.max_difference,
        "test_accuracy": next((r.accuracy for r in entry.runs if r.accuracy is not None), None),
        "predicted_step_s": None,
        "repeats": len(known),
        "complete": entry.complete,
    }


def _ratios(base: list[float | None], times: list[float | None]) -> list[float]:
    return [b / t for b, t in zip(base, times, strict=False) if b is not None and t is not None]


def _shares(entry: Entry) -> dict[str, float]:
    """Return which share of the time of a step went where, over all measured steps."""
    measured = [row for run in entry.runs for row in run.history[run.warm_up_steps :]]
    total = sum(row["step_s"] for row in measured)
    return {f"{kind}_share": sum(row[f"{kind}_s"] for row in measured) / total for kind in KINDS}


def _count(number: int, word: str, plural: str | None = None) -> str:
    return f"{number} {word if number == 1 else plural or word + 's'}"
