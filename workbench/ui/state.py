"""What the panel shows at one moment, gathered from the driver without touching any widget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from workbench import machine
from workbench.attaching import AttachedComparison
from workbench.findings import findings
from workbench.gathered import Gathered
from workbench.preview import Preview
from workbench.records import driven
from workbench.steering import ENDED
from workbench.timeline import Timeline, recorded, timeline_of
from workbench.ui import figures, look, sayings, texts
from workbench.ui.driver import Driver
from workbench.ui.form import Request, check
from workbench.ui.guard import Broken, Guard
from workbench.ui.job import Job
from workbench.ui.language import Say, current, text, translate
from workbench.ui.memory_figure import RankMemory, memory_of_runs
from workbench.ui.texts import Row
from workbench.ui.training import Training
from workbench.ui.why_table import with_bubbles

KEPT_RUNS = 20
"""Ended runs whose rows stay in the table."""

AT_ONCE = "; the cluster can be used at once"
"""What a run that broke says of its cluster; of one that has gone since it is not true."""


@dataclass(frozen=True)
class State:
    """One moment of the panel.

    Attributes
    ----------
    job:
        Number of the newest run, 0 before the first.
    kind:
        "compare" or "train".
    status:
        "idle", "followed" while something goes on that was not started here, or as of a run.
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
    found:
        What this run has shown, in sentences.
    refused:
        Strategies of a sweep that cannot be, with the reason.
    rows:
        The table: rows of all runs, newest run first.
    points:
        What the speedup figure shows: this run, and earlier ones of the same workload and batch.
    bars:
        The rows of this run.
    timeline:
        One step of the strategy, or of the serial run while there is no other.
    recorded:
        Labels of all of which there are such steps.
    memory:
        What ranks took at most, and what was predicted.
    preview:
        The newest picture that a model has made of one.
    earlier:
        Folders of earlier runs and comparisons, the newest first.
    gone:
        Whether the cluster is gone, so that another must be started.
    can_go_on:
        Whether there is a training that another strategy can go on with.
    dashboard:
        Address of the page of the cluster that shows what runs, "" without one.
    turn:
        How many runs there have been of what goes on; another one when the next begins.
    crowded:
        Whether what goes on has all cores of this machine at work, so that drawing slows it.
    broken:
        What the panel itself has broken with, for the person to know: it goes on.
    """

    message: str
    place: str
    job: int = 0
    kind: str = "compare"
    status: str = "idle"
    done: float = 0.0
    problems: Mapping[str, str] = field(default_factory=dict)
    details: str = ""
    request: Request | None = None
    found: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    rows: tuple[Row, ...] = ()
    points: tuple[Row, ...] = ()
    bars: tuple[Row, ...] = ()
    curves: tuple[figures.Curve, ...] = ()
    timeline: Timeline | None = None
    recorded: tuple[str, ...] = ()
    memory: tuple[RankMemory, ...] = ()
    preview: Preview | None = None
    earlier: tuple[str, ...] = ()
    gone: bool = False
    can_go_on: bool = False
    dashboard: str = ""
    turn: int = 0
    crowded: bool = False
    broken: tuple[Broken, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether a run is going on."""
        return self.status not in ("idle", "followed", *ENDED)

    @property
    def text(self) -> str:
        """The state in one line, for where there are no widgets."""
        found = ", ".join(
            f"{texts.row_label(row)} {row['speedup']:.2f}×"
            for row in reversed(self.bars)
            if row["speedup"] is not None
        )
        problem = next(iter(self.problems.values()), "")
        broken = " ".join(each.sentence for each in self.broken)
        parts = (self.message, problem, broken, found, self.place)
        return " · ".join(part for part in parts if part)


def _machine() -> str:
    return text("place.machine", cores=texts.count(machine.cores(), "core"))


@dataclass(frozen=True)
class Words:
    """What is said of what was measured: in another language again, and nothing measured anew."""

    place: Say = _machine
    found: tuple[Say, ...] = ()
    curves: tuple[figures.Curve, ...] = ()
    memory: Callable[[], list[RankMemory]] = list

    def said(self) -> dict[str, Any]:
        """Return it in the language of this thread, by the names that a state has for it."""
        curves = (replace(each, label=each.say()) if each.say else each for each in self.curves)
        return {
            "place": self.place(),
            "found": tuple(say() for say in self.found),
            "curves": tuple(curves),
            "memory": tuple(self.memory()),
        }


class Watcher:
    """Takes the state of a driver, and remembers the rows of the runs that have ended."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ended: dict[int, tuple[Request, list[Row]]] = {}
        self._told_in: tuple[object, ...] = ()
        self._step = ("", "usual")
        self._last = State(message="", place="")
        self._measured: dict[str, Any] = {}
        self._words = Words()
        self._guard = Guard()

    @property
    def broken(self) -> tuple[Broken, ...]:
        """What the driver's tasks, and looks at what is measured, have broken with."""
        return (*self._driver.broken, *self._guard.found.values())

    def look_at(self, label: str, which: str) -> None:
        """Show this step of what was recorded with ``label`` from now on, where there is one."""
        self._step = label, which

    def look(self) -> State:
        """Return the state of this moment; the same object once nothing more can change."""
        job, driver, using = self._driver.job, self._driver, self._driver.using
        now_in = current(), using.gone, using.opening, self._step
        news = self._told_in != now_in
        if job is None and news:
            self._last = State(message=text("progress.ready"), place=_machine())
        elif job is not None and (news or job.number not in self._ended):
            self._last = self._gather(job, gone=now_in[1])
        self._told_in = now_in
        if using.opening and not self._last.busy:
            opening = text("phase.cluster", workers=using.opening)
            if self._last.message != opening:
                self._last = replace(self._last, message=opening, done=0.0)
        training = driver.training
        now: dict[str, Any] = {
            # What goes on finds another cluster, or tells that it cannot.
            "gone": using.gone and not self._last.busy,
            "can_go_on": training is not None and training.can_go_on,
            "dashboard": using.dashboard,
            "earlier": driver.earlier.folders,
            "broken": self.broken,
        }
        if any(getattr(self._last, name) != value for name, value in now.items()):
            self._last = replace(self._last, **now)
        return self._last

    def _gather(self, job: Job, gone: bool) -> State:
        status = job.status  # before the rows: a run that has ended has all its rows
        going = job.going
        rows: list[Row] = []
        with self._guard.task("rows"):
            rows = [{"run": job.number, **row} for row in going.rows] if going else []
        # Plain mistakes are found again, in the language of this moment.
        problems = check(job.request) if job.problems else {}
        problems = problems or {name: say() for name, say in job.problems.items()}
        details = job.details
        if going is not None and going.error is not None:
            broke = str(going.error)
            problems["run"] = translate(broke.replace(AT_ONCE, "") if gone else broke)
            details = str(getattr(going.error, "details", ""))
        if job.notice:
            problems["run"] = translate(job.notice)
        shown = {**self._ended, job.number: (job.request, rows)}
        if status in ENDED:
            self._ended = dict(list(shown.items())[-KEPT_RUNS:])
        message, done = _progress(job, status)
        now = State(
            job=job.number,
            kind=job.kind,
            status=status,
            message=message,
            place="",
            done=done,
            problems=problems,
            details=details,
            request=job.request,
        )
        # Where nothing is measured yet, or ever, what was measured before stays in the figures.
        if going is not None and (going.runs or rows):
            with self._guard.task("measured"):
                self._measured, self._words = _measured(job, status, rows, shown, self._step)
                crowded = not isinstance(going, AttachedComparison) and going.crowded
                now = replace(now, turn=len(going.runs), crowded=crowded)
        return replace(now, **self._measured, **self._words.said())


def _measured(
    job: Job,
    status: str,
    rows: list[Row],
    shown: Mapping[int, tuple[Request, list[Row]]],
    step: tuple[str, str],
) -> tuple[dict[str, Any], Words]:
    """Return what of a state is measured; ``shown`` has the rows of all runs by number."""
    going: Any = job.going
    alike = [
        row
        for request, kept_rows in shown.values()
        if request.task == job.request.task
        for row in kept_rows
    ]
    found: list[Say]
    if isinstance(going, Training):
        found, curves = sayings.trained(going), _training_curves(going)
    else:
        told = [*findings(rows, machine.cores()), *sayings.amdahl(alike)]
        found = [partial(translate, said) for said in told]
        if isinstance(going, Gathered):
            found = [partial(sayings.caution, word, values) for word, values in going.cautions]
        elif status in ENDED:
            found += sayings.bubbles(going.bubbles)
            rows = with_bubbles(rows, going.bubbles)
        curves = figures.curves_of(going)
    measured = {
        "refused": tuple(getattr(going, "refused", {}).items()),
        "rows": tuple(row for number in sorted(shown, reverse=True) for row in shown[number][1]),
        # Of each strategy the newest measurement: older ones stay in the table.
        "points": tuple({(row.get("part"), texts.row_label(row)): row for row in alike}.values()),
        "bars": tuple(rows),
        "timeline": timeline_of(going.timelines, *step),
        "recorded": recorded(going.timelines),
        "preview": going.preview,
    }
    memory = memory_of_runs(r for r in going.runs if r.work is going.work)
    return measured, Words(partial(_place, rows), tuple(found), tuple(curves), memory)


def _place(rows: list[Row]) -> str:
    strategies = [row for row in rows if not texts.is_baseline(row)] or rows[-1:]
    where = "; ".join(
        dict.fromkeys(texts.placement(r["ranks"], r["threads"], r["device"]) for r in strategies)
    )
    if not where:
        return _machine()
    return text("place.measured", where=where, cores=texts.count(machine.cores(), "core"))


def _training_curves(training: Training) -> list[figures.Curve]:
    """Return one curve per strategy, each beginning where the one before has ended."""
    curves, begins_s = [], 0.0
    for run in training.segments:
        history = run.history
        if history:
            times = [begins_s + row["time_s"] for row in history]
            batches = figures.batches_of(history, begins_s)
            begins_s = times[-1]
            values = {"strategy": run.plan.strategy, "first": run.first_step + 1}
            say = partial(text, "train.curve", **values)
            curves.append(
                figures.Curve(
                    say(),
                    look.style({"strategy": run.plan.strategy, "threads": run.threads}),
                    times,
                    [row["loss"] for row in history],
                    [row["samples_per_s"] for row in history],
                    run.accuracy,
                    batches,
                    say,
                )
            )
    return curves


def _progress(job: Job, status: str) -> tuple[str, float]:
    """Return what goes on in words, and how much of it is done."""
    going: Any = job.going
    if going is None:
        if status in ("starting", "stopping"):
            key, values = job.phase
            return text(key, **values), 0.0
        return text("progress.stopped_early" if status == "stopped" else "progress.refused"), 0.0
    progress = going.progress
    done = progress.done_steps / max(1, progress.total_steps)
    if job.kind == "attached":
        steps = texts.count(progress.total_steps, "step")
        values = {"status": translate(progress.text), "done": f"{progress.done_steps:,}"}
        if status != "followed":
            return text("progress.attached", **values, steps=steps), done
        where = "here" if driven(going.folder) else "elsewhere"
        left = "" if progress.eta_s is None else f" · {texts.time_left(progress.eta_s)}"
        return text(f"progress.followed.{where}", **values, steps=steps) + left, done
    if status in ("starting", "running"):
        left = "" if progress.eta_s is None else f" · {texts.time_left(progress.eta_s)}"
        return f"{translate(progress.text)}{left}", done
    values = {
        "done": f"{progress.done_steps:,}",
        "steps": texts.count(progress.total_steps, "step"),
        "all": texts.count(progress.done_steps, "step"),
        "what": translate(progress.text),
    }
    return text(f"progress.{status}", **values), 1.0 if status == "done" else done
