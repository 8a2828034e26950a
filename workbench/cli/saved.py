"""What was measured before, read back from files in the form that a report asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.bubble import Bubble
from workbench.cli.compare import SAVED
from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS
from workbench.records import read
from workbench.speedup import Entry, rows

WORK = object()
"""Stands for the workload, the same one for all runs of a saved comparison."""


@dataclass(frozen=True)
class SavedPlan:
    """As much of a plan as a report names."""

    strategy: str


@dataclass
class SavedRun:
    """A run as its folder tells it; attributes as of :class:`workbench.run.Run`."""

    plan: SavedPlan
    threads: int
    step_s: float | None
    accuracy: float | None
    history: list[dict[str, float]]
    work: object = WORK
    warm_up_steps: int = WARM_UP_STEPS

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self.history)


@dataclass(frozen=True)
class SavedComparison:
    """A comparison as its JSON document tells it; may hold no runs, and then shows no curves.

    Spans are not in the document, and so there are no timelines.
    """

    document: dict[str, Any]
    runs: tuple[SavedRun, ...] = ()
    work: object = WORK

    @property
    def timelines(self) -> dict[str, list[dict[str, Any]]]:
        """What was recorded of every rank: nothing."""
        return {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table."""
        return self.document["rows"]

    @property
    def status(self) -> str:
        """How it ended."""
        return self.document["status"]

    @property
    def error(self) -> str | None:
        """Why it failed, if it did."""
        return self.document["error"]

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return self.document


def read_saved(path: Path) -> SavedComparison:
    """Read the folder of a comparison or of a run, or the JSON document of a comparison.

    Raises
    ------
    PlanError
        If there is nothing of that kind at ``path``.
    """
    if (path / "run.json").is_file():
        return _one_run(path)
    file = path / SAVED if path.is_dir() else path
    if not file.is_file():
        raise PlanError(
            f"There is nothing measured at {path}: it should be the folder of a run, the folder "
            "that `workbench compare --out` filled, or the JSON that `--json` printed."
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        saved = SavedComparison(document)
        complete = saved.rows and saved.status and document["workload"] and document["machine"]
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise PlanError(f"{file} is not the JSON of a comparison that has measured something.")
    names = [Path(name).name for name in document.get("runs", ())]
    folders = [path / name for name in names if (path / name / "run.json").is_file()]
    return SavedComparison(document, tuple(_run(folder)[1] for folder in folders))


def _run(folder: Path) -> tuple[dict[str, Any], SavedRun]:
    """Return the summary of a run, and the run."""
    try:
        summary, history = read(folder)
        return summary, SavedRun(
            SavedPlan(summary["strategy"]),
            summary["threads"],
            summary["step_s"],
            summary["accuracy"],
            history,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"The run in {folder} cannot be read: {error}.") from error


def _one_run(folder: Path) -> SavedComparison:
    """Return a single run as a comparison of one row, which has no baseline to stand against."""
    summary, run = _run(folder)
    entry = Entry(
        summary["strategy"],
        summary["ranks"],
        summary["threads"],
        summary["device"],
        summary["bytes_per_step"],
        runs=[run],
        backend=summary["backend"],
        complete=summary["status"] == "done",
    )
    found = rows([entry], entry)
    if not found:
        raise PlanError(
            f"The run in {folder} has {run.step} finished steps, too few to time; a run of "
            "6 or more can be reported."
        )
    for row in found:
        row.update(speedup=None, speedup_min=None, speedup_max=None, speedup_all_threads=None)
    document = {
        "machine": {},
        "workload": {
            "name": summary["workload"],
            **{key: summary[key] for key in ("batch_size", "seed", "dtype")},
            **_waited(summary),
        },
        "status": summary["status"],
        "error": summary["error"],
        "rows": found,
    }
    return SavedComparison(document, (run,))


def _waited(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return how much the ranks of a pipeline waited."""
    found = summary.get("bubble")
    return {"ranks_waited": str(Bubble(**found))} if found else {}
