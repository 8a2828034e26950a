"""The table of measured rows as HTML, for the panel and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape

from workbench.plan import in_binary_units
from workbench.spans import KINDS
from workbench.ui import texts
from workbench.ui.language import text, translate
from workbench.ui.texts import Row

STYLE = """
.wb-table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
.wb-table th, .wb-table td { padding: 4px 6px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--jp-border-color2, #8886); }
.wb-table th { vertical-align: bottom; font-weight: 600; white-space: normal; min-width: 4.5em; }
.wb-table th:first-child, .wb-table td:first-child { text-align: left; }
.wb-scroll { overflow-x: auto; }
.wb-spread { opacity: 0.75; }
"""
"""CSS for the table; colours come from JupyterLab's theme where there is one."""

SCROLL = '<div class="wb-scroll" tabindex="0">'
"""Begins what is wider than its place; arrow keys move it, which the keyboard must reach first."""


def rows_table(rows: Sequence[Row]) -> str:
    """Return what matters most of the rows as one HTML table; all text is escaped.

    A row may carry ``run``, the number of the panel's run that measured it; then it is shown.
    """
    return _table(rows, _COLUMNS)


def details_table(rows: Sequence[Row]) -> str:
    """Return the rest of the rows as one HTML table: where time goes, what travels, quality."""
    return _table(rows, _DETAILS)


def _table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    columns = dict(columns)
    if all("run" not in row for row in rows):
        del columns["run"]
    head = "".join(f'<th scope="col">{escape(text(f"table.{key}"))}</th>' for key in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(row)}</td>" for cell in columns.values()) + "</tr>"
        for row in rows
    )
    return (
        f'{SCROLL}<table class="wb-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _spread(middle: str, low: str, high: str) -> str:
    return f'{middle} <span class="wb-spread">({low}–{high})</span>'


def _step(row: Row) -> str:
    if row["step_s"] is None:
        return "–"
    middle, low, high = (
        texts.milliseconds(row[key] if row[key] is not None else row["step_s"])
        for key in ("step_s", "step_s_min", "step_s_max")
    )
    return _spread(middle, low.removesuffix(" ms"), high.removesuffix(" ms"))


def _speedup(row: Row) -> str:
    if row["speedup"] is None:
        return "–"
    middle, low, high = (
        row[key] if row[key] is not None else row["speedup"]
        for key in ("speedup", "speedup_min", "speedup_max")
    )
    return _spread(f"{middle:.2f}×", f"{low:.2f}", f"{high:.2f}")


def _against_threads(row: Row) -> str:
    speedup = row.get("speedup_all_threads")
    return "–" if speedup is None else f"{speedup:.2f}×"


def _same(row: Row) -> str:
    if texts.is_baseline(row):
        return escape(text("same.baseline"))
    if row["same_result"] is None:
        return "…"
    proof = row.get("proof", "")
    if proof.startswith("not by design"):
        return escape(translate(proof))
    verdict = text("same.yes" if row["same_result"] else "same.no")
    if proof and proof != "in float64":
        verdict = f"{verdict}, {translate(proof)}"
    difference = row["max_difference"]
    if difference is not None:
        verdict = text("same.differs", verdict=verdict, difference=f"{difference:.1g}")
    return escape(verdict)


def _accuracy(row: Row) -> str:
    accuracy = row.get("test_accuracy")
    return "–" if accuracy is None else f"{accuracy:.1%}"


def _loss(row: Row) -> str:
    loss = row.get("loss")
    return "–" if loss is None else f"{loss:.4g}"


def _repeats(row: Row) -> str:
    return escape(str(row["repeats"]) if row["complete"] else f"{row['repeats']}…")


def _strategy(row: Row) -> str:
    ranks = f"{row['ranks']} × {row['threads']} {texts.device_name(row['device'])}"
    return f'{escape(row["strategy"])} <span class="wb-spread">{escape(ranks)}</span>'


def _share(kind: str, row: Row) -> str:
    return texts.share(row.get(f"{kind}_share"))


def _run(row: Row) -> str:
    return escape(str(row.get("run", "")))


Cell = Callable[[Row], str]

_COLUMNS: dict[str, Cell] = {
    "run": _run,
    "strategy": _strategy,
    "step": _step,
    "speedup": _speedup,
    "over_threads": _against_threads,
    "same": _same,
}
"""Cell of each column by the key of its heading; a cell is HTML."""

_DETAILS: dict[str, Cell] = {
    "run": _run,
    "strategy": _strategy,
    **{kind: partial(_share, kind) for kind in KINDS},
    "sent": lambda row: in_binary_units(row["bytes_per_step"] or 0),
    "backend": lambda row: escape(translate(row.get("backend") or "–")),
    "loss": _loss,
    "accuracy": _accuracy,
    "repeats": _repeats,
}
"""The same of the columns that are folded away."""
