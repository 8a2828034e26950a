"""Runs and comparisons as their folders tell them: ended, interrupted, or driven by somebody else.

What was measured is written down step by step, so nothing is lost with the kernel that drove it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workbench.bubble import Bubble
from workbench.compared import Compared, Facts, Progress
from workbench.errors import PlanError, RunError
from workbench.measured import WARM_UP_STEPS, Measured, Row, SpanRow
from workbench.records import COMPARISON, DEFAULT_FOLDER, RUN, STEPS, drives, read, read_spans
from workbench.speedup import FEWEST_STEPS, Entry
from workbench.steering import ENDED


@dataclass(frozen=True)
class AttachedPlan:
    """As much of a plan as its run's folder tells."""

    strategy: str
    ranks: int
    bytes_per_step: int


class AttachedRun(Measured):
    """A run as its folder tells it: what was measured of it, and nothing that lies on workers.

    Attributes are those of :class:`workbench.run.Run`. ``status`` may also be ``"interrupted"``:
    whoever drove it is gone, and it will not go on.
    """

    preview = None
    kept: Mapping[str, Any] = {}

    def __init__(self, folder: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
        plan = AttachedPlan(summary["strategy"], summary["ranks"], summary["bytes_per_step"])
        super().__init__(plan, steps=summary.get("steps", len(rows)), threads=summary["threads"])
        self.folder, self._summary = folder, dict(summary)
        self.work = _facts(summary, summary["workload"])
        self.status = _status(summary, bool(rows))
        self.error: str | None = summary["error"]
        self.device, self.backend = summary["device"], summary["backend"]
        self.accuracy: float | None = summary["accuracy"]
        self.test_loss: float | None = summary.get("test_loss")
        self.first_step: int = summary.get("first_step", 0)
        self.peak_memory_bytes = tuple(summary.get("peak_memory_bytes", ()))
        self.predicted_memory_bytes = tuple(summary.get("predicted_memory_bytes", ()))
        self._rows = list(rows)
        self._read: list[SpanRow] | None = None

    @property
    def spans(self) -> list[SpanRow]:
        """The spans in its folder: the newest 20,000 of each rank, the first of an interrupted."""
        if self._read is None:
            self._read = _readable(self.folder, read_spans)
        return list(self._read)

    @property
    def bubble(self) -> Bubble | None:
        """How much the ranks of a pipeline waited, beside theory, if the run has ended."""
        found = self._summary.get("bubble")
        return Bubble(**found) if found else None

    def state(self, kind: str) -> NoReturn:
        """Refuse to give weights.

        Raises
        ------
        RunError
            Always: they are not in the folder.
        """
        raise RunError(
            f"The run {self.label} was read back from {self.folder}, which has its figures and not "
            "its weights; those are kept with wb.save(run, path) and had again by wb.load(path)."
        )

    def summary(self) -> dict[str, Any]:
        """Return the run in numbers, as it wrote them."""
        return {**self._summary, "status": self.status, "steps_done": self.step}

    def __repr__(self) -> str:
        """Say how far it is."""
        done = f"step {self.step} of {self.steps}"
        return f"<AttachedRun {self.work.name} {self.label}: {self.status}, {done}>"


class AttachedComparison(Compared):
    """A comparison as its folder tells it, or as a JSON document does; nothing of it goes on.

    Attributes are those of :class:`workbench.comparison.Comparison`; ``status`` may also be
    ``"interrupted"``. A document without a folder has rows and no runs, so no curves.
    """

    preview = None

    def __init__(
        self,
        document: Mapping[str, Any],
        entries: Sequence[Entry] = (),
        timelines: Mapping[str, list[SpanRow]] | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(
            _facts(document["workload"], document["workload"]["name"]),
            entries,
            steps=document.get("steps", 0),
            repeats=document.get("repeats", 0),
            machine=document["machine"],
            refused=document.get("refused", {}),
            price_per_worker_hour=document.get("price_per_worker_hour"),
            unproved=document.get("unproved"),
        )
        self.timelines = dict(timelines or {})
        self.folder, self.error = folder, document["error"]
        self.work: Any = self.facts
        self.runs: tuple[Any, ...] = tuple(run for entry in self.entries for run in entry.runs)
        self._status = _status(document, bool(self.runs))
        self._rows = list(document["rows"])
        told = document.get("progress", {})
        self._steps_done = told.get("done_steps", 0), told.get("total_steps", 0)

    @property
    def status(self) -> str:
        """As of a run, or "interrupted"."""
        return self._status

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table, from the runs if they are there, else as it was written."""
        return super().rows if self.entries else [dict(row) for row in self._rows]

    @property
    def progress(self) -> Progress:
        """How far it came."""
        return Progress(*self._steps_done, 0.0, self.status.capitalize())


def attach(path: str | Path | None = None) -> AttachedRun | AttachedComparison:
    """Return a run or a comparison as it is on disk, whoever drives it or drove it.

    It has rows, history, spans or timelines, and goes wherever figures are made: ``wb.export``, the
    report, the panel. Its ``status`` is ``"interrupted"`` if whoever drove it is gone.

    Parameters
    ----------
    path:
        The folder of a run or a comparison, a folder with such folders, of which the newest is
        taken, or a file that ``workbench compare --json`` printed. ``workbench-runs`` if left out.

    Raises
    ------
    PlanError
        If there is nothing of that kind, or it cannot be read.
    """
    asked = Path(DEFAULT_FOLDER if path is None else path).expanduser()
    if asked.is_file():
        return _comparison(asked)
    if (asked / COMPARISON).is_file():
        return _comparison(asked / COMPARISON)
    if (asked / RUN).is_file():
        return _run(asked)
    found = [f for f in asked.iterdir() if _changed_s(f)] if asked.is_dir() else []
    if not found:
        raise PlanError(
            f"There is nothing measured at {asked}: it should be the folder of a run or of a "
            "comparison, a folder that holds such folders, or the JSON that `--json` printed."
        )
    return attach(max(found, key=_changed_s))


def as_comparison(run: Any) -> AttachedComparison:
    """Return a single run as a comparison of one row, which has no baseline to stand against.

    Parameters
    ----------
    run:
        A :class:`workbench.run.Run`, or an attached one.

    Raises
    ------
    PlanError
        If it has too few steps to time.
    """
    summary = run.summary()
    entry = Entry(
        run.plan.strategy,
        run.plan.ranks,
        run.threads,
        run.device,
        run.plan.bytes_per_step,
        runs=[run],
        backend=run.backend,
        complete=run.status == "done",
    )
    facts = _facts(summary, summary["workload"])
    document = {
        "machine": {},
        "workload": vars(facts),
        "status": run.status,
        "error": None if run.error is None else str(run.error),
        "rows": [],
        "steps": run.steps,
        "repeats": 1,
    }
    found = _OneRun(document, [entry], {run.label: run.spans} if run.spans else {}, run.folder)
    found.work = run.work
    if not found.rows:
        fewest = WARM_UP_STEPS + FEWEST_STEPS
        raise PlanError(
            f"The run in {run.folder} has {run.step} finished steps, too few to time; a run of "
            f"{fewest} or more can be reported."
        )
    return found


class _OneRun(AttachedComparison):
    def to_json(self) -> dict[str, Any]:
        """As of a comparison, with how much the ranks of a pipeline waited."""
        document = super().to_json()
        if bubble := self.runs[0].bubble:
            document["workload"]["ranks_waited"] = str(bubble)
        return document

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row, whose speedups are not known."""
        unknown = ("speedup", "speedup_min", "speedup_max", "speedup_all_threads")
        return [{**row, **dict.fromkeys(unknown)} for row in super().rows]


def _comparison(file: Path) -> AttachedComparison:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        known = {*_folders(file.parent)}
        entries = [_entry(line, file.parent, known) for line in document.get("lines", ())]
        timelines = {
            label: _readable(file.parent / name, read_spans)
            for label, name in document.get("timelines", {}).items()
            if name in known
        }
        found = AttachedComparison(document, entries, timelines, file.parent)
        for run in found.runs:
            run.work = found.work  # one workload, known by identity
        complete = bool(found.status and found.machine) and isinstance(found.rows, list)
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise PlanError(f"{file} is not the JSON of a comparison that has measured something.")
    return found


def _entry(line: Mapping[str, Any], folder: Path, known: set[str]) -> Entry:
    names = [name for name in line["runs"] if name in known]  # never a path that leads elsewhere
    return Entry(**{**line, "runs": [_run(folder / name) for name in names]})


def _run(folder: Path) -> AttachedRun:
    summary, rows = _readable(folder, read)
    try:
        return AttachedRun(folder, summary, rows)
    except (KeyError, TypeError) as error:
        raise PlanError(f"The run in {folder} cannot be read: {error!r}.") from error


def _readable(folder: Path, reading: Callable[[Path], Any]) -> Any:
    try:
        return reading(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"The run in {folder} cannot be read: {error}.") from error


def _folders(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if (path / RUN).is_file()]


def _changed_s(folder: Path) -> float:
    """Return when a run or a comparison last wrote; 0 where there is none."""
    files = [folder / COMPARISON, folder / RUN, folder / STEPS]
    if not (files[0].is_file() or files[1].is_file()):
        return 0.0
    return max(file.stat().st_mtime for file in files if file.is_file())


def _facts(told: Mapping[str, Any], name: str) -> Facts:
    samples = told.get("samples") or told["batch_size"]
    return Facts(name, told["batch_size"], samples, told.get("seed", 0), told.get("dtype", ""))


def _status(told: Mapping[str, Any], begun: bool) -> str:
    status = str(told["status"])
    if status in ENDED or "driver" not in told:
        return status
    if drives(told["driver"]) is False:
        return "interrupted"
    return "running" if status == "starting" and begun else status
