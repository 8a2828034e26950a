"""The table of measured rows as HTML, for the panel and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from workbench.plan import in_binary_units
from workbench.ui import texts
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


def rows_table(rows: Sequence[Row]) -> str:
    """Return the rows as one HTML table; all text is escaped.

    A row may carry ``run``, the number of the panel's run that measured it; then it is shown.
    """
    columns = dict(_COLUMNS)
    if all("run" not in row for row in rows):
        del columns["Run"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(row)}</td>" for cell in columns.values()) + "</tr>"
        for row in rows
    )
    return (
        '<div class="wb-scroll"><table class="wb-table">'
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


def _where(row: Row) -> str:
    shares = (row[f"{kind}_share"] for kind in ("compute", "comm", "wait", "optimizer"))
    return " / ".join(map(texts.share, shares))


def _same(row: Row) -> str:
    if texts.is_baseline(row):
        return "baseline"
    if row["same_result"] is None:
        return "…"
    proof = row.get("proof", "")
    if proof.startswith("not by design"):
        return escape(proof)
    verdict = "yes" if row["same_result"] else "NO"
    if proof and proof != "in float64":
        verdict = escape(f"{verdict}, {proof}")
    difference = row["max_difference"]
    return verdict if difference is None else f"{verdict}, differs ≤ {difference:.1g}"


def _accuracy(row: Row) -> str:
    accuracy = row.get("test_accuracy")
    return "–" if accuracy is None else f"{accuracy:.1%}"


def _loss(row: Row) -> str:
    loss = row.get("loss")
    return "–" if loss is None else f"{loss:.4g}"


def _repeats(row: Row) -> str:
    return str(row["repeats"]) if row["complete"] else f"{row['repeats']}…"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "Run": lambda row: escape(str(row.get("run", ""))),
    "Strategy": lambda row: escape(row["strategy"]),
    "Ranks × threads": lambda row: (
        f"{row['ranks']} × {row['threads']} {escape(texts.device_name(row['device']))}"
    ),
    "Time per step, measured (min–max)": _step,
    "Speedup over 1 thread (min–max)": _speedup,
    "Speedup over all threads": _against_threads,
    "Same result": _same,
    "Compute / comm / wait / optimizer": _where,
    "Sent per step": lambda row: in_binary_units(row["bytes_per_step"] or 0),
    "Loss at the end": _loss,
    "Test accuracy": _accuracy,
    "Repeats": _repeats,
}
"""Heading and cell of each column; a cell is HTML."""
