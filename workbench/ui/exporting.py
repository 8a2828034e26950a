"""What was measured as files for other programs: tables, traces, pictures, a report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.attaching import as_comparison, attach
from workbench.errors import PlanError
from workbench.measured import Measured
from workbench.records import finite, typed_path
from workbench.timeline import trace
from workbench.ui.drawing import document
from workbench.ui.layer_picture import picture
from workbench.ui.report import plans_of, report_html
from workbench.ui.stills import available, png, svg


def export(of: Any, path: str | Path) -> list[Path]:
    """Write what was measured to a file, by its ending, or all of it to a folder.

    =================  =============================================================
    ``.csv``           the table, one line per baseline and strategy
    ``.steps.csv``     every step of every timed run
    ``.json``          the table with machine and workload
    ``.trace.json``    what every rank did when, for ui.perfetto.dev
    ``.svg``, ``.png`` the figures, one below the other
    ``.html``          the report, which opens with the network off
    a folder           all of these, every figure by itself, and the cut of one layer by strategy
    =================  =============================================================

    No browser is needed. Missing folders are made, files of the same name replaced.

    Parameters
    ----------
    of:
        A run or a comparison, going on or ended, or what :func:`workbench.attach` takes or gives.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    PlanError
        For another ending, if there is nothing of that kind, or no file can be written there.
    """
    found = attach(of) if isinstance(of, str | Path) else of
    target = typed_path(path)
    if target.is_dir() or not target.suffix:
        return [_write(target / name, content) for name, content in _everything(found)]
    for ending, make in _MAKERS.items():
        if target.name.endswith(ending):
            return [_write(target, make(found))]
    raise PlanError(
        f"path={str(path)!r} has no ending that can be written; there are: {', '.join(_MAKERS)}, "
        "or a folder without an ending for all of them."
    )


def _everything(of: Any) -> Iterable[tuple[str, str | bytes]]:
    """Yield names and contents of all that can be made of what was measured."""
    names = {".csv": "table.csv", ".steps.csv": "steps.csv", ".json": "table.json"}
    names |= {".trace.json": "trace.json", ".html": "report.html"}
    if not _timelines(of):
        del names[".trace.json"]
    for ending, name in names.items():
        yield name, _MAKERS[ending](of)
    comparison = _comparison(of)
    for figure in available(comparison):
        yield f"{figure}.svg", svg(comparison, [figure])
        yield f"{figure}.png", png(comparison, [figure])
    for plan in plans_of(comparison):
        yield f"cut.{plan.strategy}.svg", document(picture(plan).svg)


def _comparison(of: Any) -> Any:
    return as_comparison(of) if isinstance(of, Measured) else of


def _drawn(of: Any) -> Any:
    comparison = _comparison(of)
    if not available(comparison):
        raise PlanError("There is nothing to draw yet: no run has made enough steps to be timed.")
    return comparison


def _table(of: Any) -> str:
    rows = _comparison(of).rows
    if not rows:
        raise PlanError("There are no rows yet: no run has made enough steps to be timed.")
    return _csv(rows)


def _steps(of: Any) -> str:
    alone = isinstance(of, Measured)
    runs: list[Any] = [of] if alone else list(of.runs)
    rows = [
        {"strategy": run.plan.strategy, "threads": run.threads, "run": run.folder.name, **row}
        for run in runs
        if alone or run.work is of.work  # those that prove a result are other work
        for row in run.history
    ]
    if not rows:
        raise PlanError("There are no steps to write: no run is there, or none has made one.")
    return _csv(rows)


def _timelines(of: Any) -> dict[str, Any]:
    spans = {of.label: of.spans} if isinstance(of, Measured) else of.timelines
    return {label: each for label, each in spans.items() if each}


def _trace(of: Any) -> str:
    spans = _timelines(of)
    if not spans:
        raise PlanError(
            "There are no spans to write: they are recorded with spans=True, from the first step."
        )
    return json.dumps(trace(spans))


def _document(of: Any) -> str:
    return json.dumps(finite(_comparison(of).to_json()), indent=1) + "\n"


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as text with a line of names; what some rows lack is left empty there."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _write(path: Path, content: str | bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise PlanError(
            f"{path} cannot be written ({error.strerror}); give another path."
        ) from None
    return path


_MAKERS: Mapping[str, Callable[[Any], str | bytes]] = {
    ".steps.csv": _steps,
    ".csv": _table,
    ".trace.json": _trace,
    ".json": _document,
    ".svg": lambda of: svg(_drawn(of)),
    ".png": lambda of: png(_drawn(of)),
    ".html": lambda of: report_html(_comparison(of)),
}
"""What makes the content of a file, by its ending; the longer endings come first."""
