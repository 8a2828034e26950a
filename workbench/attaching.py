"""Runs and comparisons as their folders tell them: ended, interrupted, or driven by somebody else.

What was measured is written down step by step, so nothing is lost with the kernel that drove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from workbench.attached_run import (
    OVER,
    AttachedRun,
    facts_of,
    read_run,
    readable,
    status_of,
    stop_driven,
    wait_for,
)
from workbench.bubble import bubbles_told
from workbench.compared import Compared, Progress
from workbench.documents import read_document
from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS, SpanRow
from workbench.records import COMPARISON, DEFAULT_FOLDER, RUN, STEPS, read_spans, typed_path
from workbench.speedup import FEWEST_STEPS, Entry


class AttachedComparison(Compared):
    """A comparison as its folder tells it, or as a JSON document does.

    It is as it was when it was read, until :meth:`refresh` or :meth:`wait` reads what is new.
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
            facts_of(document["workload"], document["workload"]["name"]),
            entries,
            steps=document.get("steps", 0),
            repeats=document.get("repeats", 0),
            machine=document["machine"],
            refused=document.get("refused", {}),
            price_per_worker_hour=document.get("price_per_worker_hour"),
            unproved=document.get("unproved"),
        )
        self.folder = folder
        self.work: Any = self.facts
        self.runs: tuple[Any, ...] = ()
        self._take(document, entries, timelines or {})

    @property
    def status(self) -> str:
        """As of a run, or "interrupted"."""
        return self._status

    @property
    def step(self) -> int:
        """Steps that have been made, of all runs."""
        return self.progress.done_steps

    @property
    def hosts(self) -> list[str]:
        """The machines that it was driven on, as far as it tells."""
        return [str(self._driver["host"])] if "host" in self._driver else []

    def refresh(self) -> Self:
        """Read what is new, if it has not ended: runs and their steps, rows, status."""
        if self.status in OVER or self.folder is None:
            return self
        try:
            file = self.folder / COMPARISON
            document = read_document(file.read_text(encoding="utf-8"), file)
            runs = {run.folder.name: run for run in self.runs}
            parts = _parts(document, self.folder, runs, self.timelines)
        except (OSError, ValueError, RecursionError):  # it is being taken away: nothing is new
            return self
        for run in self.runs:
            run.refresh()
        self._take(document, *parts)
        return self

    def wait(self, timeout_s: float | None = None) -> Self:
        """Follow it until it has ended; as of :meth:`workbench.attached_run.AttachedRun.wait`."""
        found: Self = wait_for(self, "The comparison", timeout_s)
        return found

    def stop(self) -> None:
        """End it, if this process drives it; as of a run."""
        driver = self._driver
        stop_driven(
            self,
            f"The comparison is driven by process {driver.get('pid')} on {driver.get('host')}, "
            "and only that can stop it: press Stop or call stop() there, or end that process.",
        )

    def _take(
        self,
        document: Mapping[str, Any],
        entries: Sequence[Entry],
        timelines: Mapping[str, list[SpanRow]],
    ) -> None:
        """Take what the folder tells."""
        self.entries, self.timelines = list(entries), dict(timelines)
        self.bubbles = bubbles_told(document.get("bubbles", {}))
        self.runs = tuple(run for entry in entries for run in entry.runs)
        for run in self.runs:
            if isinstance(run, AttachedRun):
                run.work = self.work  # one workload, known by identity
        self.refused, self.unproved = document.get("refused", {}), document.get("unproved")
        self.error, self._driver = document["error"], document.get("driver", {})
        self._rows = list(document["rows"])
        told = document.get("progress", {})
        self._steps_done = told.get("done_steps", 0), told.get("total_steps", 0)
        self._status = status_of(document, bool(self.runs))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table, from the runs if they are there, else as it was written."""
        return super().rows if self.entries else [dict(row) for row in self._rows]

    @property
    def progress(self) -> Progress:
        """How far it came, or is."""
        done, total = self._steps_done
        done = max(done, sum(run.step for run in self.runs))
        return Progress(done, total, 0.0 if self.status in OVER else None, self.status.capitalize())


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
    asked = typed_path(DEFAULT_FOLDER if path is None else path)
    if asked.is_file():
        return _comparison(asked)
    if (asked / COMPARISON).is_file():
        return _comparison(asked / COMPARISON)
    if (asked / RUN).is_file():
        return read_run(asked)
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
    found = followed(run)
    if not found.rows:
        fewest = WARM_UP_STEPS + FEWEST_STEPS
        raise PlanError(
            f"The run in {run.folder} has {run.step} finished steps, too few to time; a run of "
            f"{fewest} or more can be reported."
        )
    return found


def followed(run: Any) -> AttachedComparison:
    """Return a run, which may have no step yet, as a comparison that is followed as the run is."""
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
    facts = facts_of(summary, summary["workload"])
    document = {
        "machine": {},
        "workload": vars(facts),
        "status": run.status,
        "error": None if run.error is None else str(run.error),
        "rows": [],
        "steps": run.steps,
        "repeats": 1,
    }
    return _OneRun(run, document, entry)


class _OneRun(AttachedComparison):
    def __init__(self, run: Any, document: Mapping[str, Any], entry: Entry) -> None:
        super().__init__(document, [entry], _timeline(run), run.folder)
        self.work = run.work

    @property
    def status(self) -> str:
        """That of the run."""
        return str(self.runs[0].status)

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        run = self.runs[0]
        return Progress(run.step, run.steps, run.eta_s, self.status.capitalize())

    def refresh(self) -> Self:
        """Read what is new of the run."""
        if self.status not in OVER:
            run = self.runs[0].refresh()
            self.entries[0].complete = run.status == "done"
            self.error, self.timelines = run.error, _timeline(run)
        return self

    def stop(self) -> None:
        """End the run, if this process drives it."""
        self.runs[0].stop()

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


def _timeline(run: Any) -> dict[str, list[SpanRow]]:
    spans = run.spans
    return {run.label: spans} if spans else {}


def _comparison(file: Path) -> AttachedComparison:
    try:
        document = read_document(file.read_text(encoding="utf-8"), file)
    except PlanError:
        raise
    except (ValueError, RecursionError):
        raise PlanError(
            f"{file} is not the JSON of a comparison that has measured something."
        ) from None
    return AttachedComparison(document, *_parts(document, file.parent), file.parent)


def _parts(
    document: Mapping[str, Any],
    folder: Path,
    runs: Mapping[str, AttachedRun] | None = None,
    timelines: Mapping[str, list[SpanRow]] | None = None,
) -> tuple[list[Entry], dict[str, list[SpanRow]]]:
    """Return the lines with their runs, and the timelines; what has been read is kept."""
    known, runs, timelines = {*_folders(folder)}, runs or {}, timelines or {}
    entries = []
    for line in document.get("lines", ()):
        names = [name for name in line["runs"] if name in known]  # never a path that leads away
        of_line = [runs.get(name) or read_run(folder / name) for name in names]
        entries.append(Entry(**{**line, "runs": of_line}))
    recorded = {
        label: timelines.get(label) or readable(folder / name, read_spans)
        for label, name in document.get("timelines", {}).items()
        if name in known
    }
    return entries, recorded


def _folders(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if (path / RUN).is_file()]


def _changed_s(folder: Path) -> float:
    """Return when a run or a comparison last wrote; 0 where there is none."""
    files = [folder / COMPARISON, folder / RUN, folder / STEPS]
    if not (files[0].is_file() or files[1].is_file()):
        return 0.0
    return max(file.stat().st_mtime for file in files if file.is_file())
