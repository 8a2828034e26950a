"""What every rank did when: one step of a run for a picture, all of it for a trace viewer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS

WHICH = ("usual", "fastest", "slowest")
"""Steps that can be looked at: the one that takes as long as most, and the ends of the range."""

SpanRow = Mapping[str, Any]
"""A span with its rank: ``rank, step, kind, name, start_s, stop_s, sent_bytes``."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of the step that is shown; times count from when the first rank began the step."""

    rank: int
    kind: str
    name: str
    start_s: float
    stop_s: float
    sent_bytes: int


@dataclass(frozen=True)
class Timeline:
    """The step that is shown: of which strategy, and its bars."""

    label: str
    step: int
    bars: tuple[Bar, ...]


def steps_in(spans: Iterable[SpanRow]) -> dict[int, float]:
    """Return the seconds of each step that all ranks have recorded, the slowest rank's, by step."""
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    for span in spans:
        key = span["step"], span["rank"]
        start_s, stop_s = ends.get(key, (span["start_s"], span["stop_s"]))
        ends[key] = min(start_s, span["start_s"]), max(stop_s, span["stop_s"])
    ranks = {rank for _, rank in ends}
    return {
        step: max(ends[step, rank][1] - ends[step, rank][0] for rank in ranks)
        for step in sorted({step for step, _ in ends})
        if all((step, rank) in ends for rank in ranks)
    }


def step_of(spans: Sequence[SpanRow], which: str = "usual", warm_up: int = 0) -> int | None:
    """Return the number of one step after ``warm_up``, one of :data:`WHICH`; None for none.

    The usual one takes as long as most. The first steps stand in where there are no others.
    """
    lengths = steps_in(spans)
    later = dict(list(lengths.items())[warm_up:]) or lengths
    if not later:
        return None
    if which != "usual":
        return (min if which == "fastest" else max)(later, key=lambda step: later[step])
    middle_s = median(later.values())
    return min(later, key=lambda step: abs(later[step] - middle_s))


def bars_of(spans: Sequence[SpanRow], step: int) -> list[Bar]:
    """Return the spans of one step as bars, by rank and time.

    Ranks of one host read one clock. Where those of several hosts are so far apart that they cannot
    have done the step together, each rank's step is drawn from its own beginning.
    """
    mine = sorted((s for s in spans if s["step"] == step), key=lambda s: (s["rank"], s["start_s"]))
    began_s: dict[int, float] = {}
    for span in mine:
        began_s[span["rank"]] = min(began_s.get(span["rank"], span["start_s"]), span["start_s"])
    if not began_s:
        return []
    length_s = max(span["stop_s"] - began_s[span["rank"]] for span in mine)
    first_s = min(began_s.values())
    if max(began_s.values()) - first_s <= length_s:
        began_s = dict.fromkeys(began_s, first_s)
    return [
        Bar(
            span["rank"],
            span["kind"],
            span["name"],
            span["start_s"] - began_s[span["rank"]],
            span["stop_s"] - began_s[span["rank"]],
            span["sent_bytes"],
        )
        for span in mine
    ]


def recorded(timelines: Mapping[str, Sequence[SpanRow]]) -> tuple[str, ...]:
    """Return the labels of what was recorded, in the order of recording."""
    return tuple(label for label, spans in timelines.items() if spans)


def timeline_of(
    timelines: Mapping[str, Sequence[SpanRow]], label: str = "", which: str = "usual"
) -> Timeline | None:
    """Return one step, one of :data:`WHICH`, of what was recorded with ``label``.

    Without such a record it is of the last strategy that was recorded; None while there is none.
    """
    labels = recorded(timelines)
    if not labels:
        return None
    label = label if label in labels else labels[-1]
    spans = timelines[label]
    step = step_of(spans, which, WARM_UP_STEPS)
    return None if step is None else Timeline(label, step, tuple(bars_of(spans, step)))


def trace(runs: Mapping[str, Sequence[SpanRow]]) -> dict[str, Any]:
    """Return the spans of runs, by their label, in the format that Chrome and Perfetto read.

    Every run is a process of the trace and every rank a thread; times are in microseconds from the
    first span of the run ("Trace Event Format", Google, complete events).
    """
    events: list[dict[str, Any]] = []
    for pid, (label, spans) in enumerate(runs.items()):
        first_s = min((span["start_s"] for span in spans), default=0.0)
        events.append(_named("process_name", label, pid))
        events += [
            _named("thread_name", f"rank {rank}", pid, rank)
            for rank in sorted({span["rank"] for span in spans})
        ]
        events += [
            {
                "ph": "X",
                "name": span["name"] or span["kind"],
                "cat": span["kind"],
                "ts": 1e6 * (span["start_s"] - first_s),
                "dur": 1e6 * (span["stop_s"] - span["start_s"]),
                "pid": pid,
                "tid": span["rank"],
                "args": {"step": span["step"], "sent_bytes": span["sent_bytes"]},
            }
            for span in spans
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(of: Any, path: str | Path) -> Path:
    """Write what every rank did when to a file for a trace viewer, and return its path.

    The file opens in https://ui.perfetto.dev and in chrome://tracing. Missing folders are made.

    Parameters
    ----------
    of:
        A run, or a comparison that was made with ``spans=True``.

    Raises
    ------
    PlanError
        If nothing was recorded.
    """
    runs = of.timelines if hasattr(of, "timelines") else {of.label: of.spans}
    if not any(runs.values()):
        raise PlanError(
            "There are no spans to write: they are recorded with spans=True, from the first step."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(trace(runs)), encoding="utf-8")
    return path


def _named(what: str, name: str, pid: int, tid: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
