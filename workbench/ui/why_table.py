"""Why this speed: where one step of every row went, as an HTML table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from workbench.spans import KINDS
from workbench.ui import table, texts
from workbench.ui.language import text
from workbench.ui.texts import Row
from workbench.why import why


def why_table(rows: Sequence[Row], cores: int) -> str:
    """Return for each row its step, every part of it in ms and percent, and the ideal step.

    The parts and what is left over are the whole step. The ideal is that of one process with one
    thread divided by the cores that a row used, of ``cores`` that there are; there is none without
    such a process. Empty without rows.
    """
    known = [row for row in rows if row["step_s"] is not None]
    if not known:
        return ""
    names = [
        *(text(f"why.{name}") for name in ("strategy", "step")),
        *(text(f"table.{kind}") for kind in KINDS),
        *(text(f"why.{name}") for name in ("rest", "ideal")),
    ]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{_cells(row, known, cores)}</tr>" for row in known)
    return (
        f"<h3>{escape(text('why.title'))}</h3>"
        f'{table.SCROLL}<table class="wb-table wb-why">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="wb-spread">{escape(text("why.about"))}</p>'
    )


def _cells(row: Row, rows: Sequence[Row], cores: int) -> str:
    shares = [row.get(f"{kind}_share") or 0.0 for kind in KINDS]
    parts = [_part(share, row["step_s"]) for share in (*shares, max(0.0, 1 - sum(shares)))]
    same = [each for each in rows if each.get("part") == row.get("part")]
    alone = next((r for r in same if texts.is_baseline(r) and r["threads"] == 1), None)
    ideal = "–"
    if alone is not None:
        found = why(row, alone, cores)
        ideal = _with(texts.milliseconds(found.ideal_s), f"{found.efficiency:.0%}")
    cells = [escape(texts.row_label(row)), texts.milliseconds(row["step_s"]), *parts, ideal]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _part(share: float, step_s: float) -> str:
    return _with(texts.milliseconds(share * step_s), f"{share:.0%}")


def _with(value: str, beside: str) -> str:
    return f'{value} <span class="wb-spread">({beside})</span>'
