"""What the panel shows at one moment, gathered from the driver without touching any widget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from workbench import machine
from workbench.preview import Preview
from workbench.steering import ENDED
from workbench.timeline import Timeline, timeline_of
from workbench.ui import figures, texts
from workbench.ui.driver import Driver, Job
from workbench.ui.form import Request
from workbench.ui.texts import Row

KEPT_RUNS = 20
"""Ended runs whose rows stay in the table."""


@dataclass(frozen=True)
class State:
    """One moment of the panel.

    Attributes
    ----------
    job:
        Number of the newest run, 0 before the first.
    status:
        "idle", or as of a run.
    message:
        What goes on, with the time left.
    place:
        Device, threads, workers and machine that the numbers were measured on.
    done:
        How much is done, from 0 to 1.
    problems:
        Sentences by the control that caused them.
    request:
        What was asked for.
    rows:
        The table: rows of all runs, newest run first.
    points:
        What the speedup figure shows: this run, and earlier ones of the same workload and batch.
    bars:
        The rows of this run.
    timeline:
        One step of the strategy, or of the serial run while there is no other.
    preview:
        The newest picture that a model has made of one.
    """

    message: str
    place: str
    job: int = 0
    status: str = "idle"
    done: float = 0.0
    problems: Mapping[str, str] = field(default_factory=dict)
    details: str = ""
    request: Request | None = None
    rows: tuple[Row, ...] = ()
    points: tuple[Row, ...] = ()
    bars: tuple[Row, ...] = ()
    curves: tuple[figures.Curve, ...] = ()
    timeline: Timeline | None = None
    preview: Preview | None = None

    @property
    def busy(self) -> bool:
        """Whether a run is going on."""
        return self.status in ("starting", "running", "stopping")

    @property
    def text(self) -> str:
        """The state in one line, for where there are no widgets."""
        found = ", ".join(
            f"{texts.row_label(row)} {row['speedup']:.2f}×"
            for row in reversed(self.bars)
            if row["speedup"] is not None
        )
        problem = next(iter(self.problems.values()), "")
        return " · ".join(part for part in (self.message, problem, found, self.place) if part)


class Watcher:
    """Takes the state of a driver, and remembers the rows of the runs that have ended."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._cores = texts.count(machine.cores(), "core")
        self._ended: dict[int, tuple[Request, list[Row]]] = {}
        self._last = State(message="Ready.", place=f"This machine: {self._cores}")

    def look(self) -> State:
        """Return the state of this moment; the same object once nothing more can change."""
        job = self._driver.job
        if job is not None and job.number not in self._ended:
            self._last = self._gather(job)
        return self._last

    def _gather(self, job: Job) -> State:
        status = job.status  # before the rows: a run that has ended has all its rows
        comparison = job.comparison
        rows: list[Row] = (
            [{"run": job.number, **row} for row in comparison.rows] if comparison else []
        )
        problems, details = dict(job.problems), job.details
        if comparison is not None and comparison.error is not None:
            problems["run"] = str(comparison.error)
            details = str(getattr(comparison.error, "details", ""))
        shown = {**self._ended, job.number: (job.request, rows)}
        if status in ENDED:
            self._ended = dict(list(shown.items())[-KEPT_RUNS:])
        message, done = _progress(job, status)
        if comparison is None:
            # Nothing is measured yet, or ever: what was measured before stays in the figures.
            return replace(
                self._last,
                job=job.number,
                status=status,
                message=message,
                done=done,
                problems=problems,
                details=details,
                request=job.request,
            )
        alike = [
            row
            for request, kept in shown.values()
            if (request.workload, request.batch) == (job.request.workload, job.request.batch)
            for row in kept
        ]
        return State(
            job=job.number,
            status=status,
            message=message,
            place=self._place(rows),
            done=done,
            problems=problems,
            details=details,
            request=job.request,
            rows=tuple(row for number in sorted(shown, reverse=True) for row in shown[number][1]),
            # Of each strategy the newest measurement: older ones stay in the table.
            points=tuple({texts.row_label(row): row for row in alike}.values()),
            bars=tuple(rows),
            curves=tuple(figures.curves_of(comparison)),
            timeline=timeline_of(comparison.timelines),
            preview=comparison.preview,
        )

    def _place(self, rows: list[Row]) -> str:
        strategies = [row for row in rows if not texts.is_baseline(row)] or rows[-1:]
        where = "; ".join(
            texts.placement(r["ranks"], r["threads"], r["device"]) for r in strategies
        )
        return f"Measured on {where}, of {self._cores}" if where else f"This machine: {self._cores}"


def _progress(job: Job, status: str) -> tuple[str, float]:
    """Return what goes on in words, and how much of it is done."""
    comparison: Any = job.comparison
    if comparison is None:
        if status == "starting":
            return f"{job.phase}…", 0.0
        return {"stopped": "Stopped.", "failed": "Not started."}[status], 0.0
    progress = comparison.progress
    done = progress.done_steps / max(1, progress.total_steps)
    if status in ("starting", "running"):
        left = "" if progress.eta_s is None else f" · {texts.time_left(progress.eta_s)}"
        return f"{progress.text}{left}", done
    counted = f"{progress.done_steps} of {texts.count(progress.total_steps, 'step')}"
    return {
        "stopping": "Stopping…",
        "stopped": f"Stopped after {counted}; what was measured stays.",
        "failed": f"Failed after {counted}.",
        "done": f"Done: {texts.count(progress.done_steps, 'step')}.",
    }[status], 1.0 if status == "done" else done
