"""Why this speed: where one step of every row went, as an HTML table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from workbench.bubble import Bubble
from workbench.spans import KINDS
from workbench.ui import table, texts
from workbench.ui.language import text
from workbench.ui.texts import Row
from workbench.why import why


def with_bubbles(rows: Sequence[Row], bubbles: Mapping[str, Bubble]) -> list[Row]:
    """Return rows with ``bubble_share``: the part of ``wait_share`` that a schedule leaves idle."""
    found: list[Row] = []
    for row in rows:
        bubble = bubbles.get(row["strategy"])
        waited = row.get("wait_share")
        if bubble is not None and waited is not None:
            row = {**row, "bubble_share": min(waited, bubble.step_share)}
        found.append(row)
    return found


def why_table(rows: Sequence[Row], cores: int) -> str:
    """Return for each row its step, every part of it in ms and percent, and the ideal step.

    The parts are the whole step. Of rows with ``bubble_share`` that part of waiting stands apart.
    The ideal is that of one process with one thread divided by the cores that a row used, of
    ``cores`` that there are; there is none without such a process. Empty without rows.
    """
    known = [row for row in rows if row["step_s"] is not None]
    if not known:
        return ""
    kinds = _kinds(known)
    names = [
        *(text(f"why.{name}") for name in ("strategy", "step")),
        *(text(f"table.{kind}") for kind in kinds),
        text("why.ideal"),
    ]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{_cells(row, known, cores)}</tr>" for row in known)
    return (
        f"<h3>{escape(text('why.title'))}</h3>"
        f'{table.SCROLL}<table class="wb-table wb-why">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="wb-spread">{escape(text("why.about"))}</p>'
    )


def _kinds(rows: Sequence[Row]) -> list[str]:
    """Return the parts that are told: a bubble where any row has one."""
    at = KINDS.index("wait")
    bubble = ["bubble"] if any("bubble_share" in row for row in rows) else []
    return [*KINDS[:at], *bubble, *KINDS[at:]]


def _share(row: Row, kind: str) -> float:
    share = row.get(f"{kind}_share") or 0.0
    return share - (row.get("bubble_share") or 0.0) if kind == "wait" else share


def _cells(row: Row, rows: Sequence[Row], cores: int) -> str:
    shares = [_share(row, kind) for kind in _kinds(rows)]
    parts = [_part(share, row["step_s"]) for share in shares]
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
