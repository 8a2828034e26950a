"""Every scheme of placement in one table: how even it is, and what the last change has moved."""

from __future__ import annotations

from html import escape

from workbench.distribution import Move
from workbench.plan import in_binary_units
from workbench.ui import table
from workbench.ui.language import text
from workbench.ui.placement_state import Schemes

STYLE = (
    table.STYLE
    + """
.wb-where { color: var(--jp-ui-font-color1, #222); font-size: 14px; line-height: 1.45; }
.wb-where .widget-html-content { height: auto; line-height: 1.45; font-size: 14px;
  overflow: visible; }
.wb-where-row { flex-flow: row wrap; align-items: center; gap: 4px 16px; overflow: visible; }
.wb-where-row .widget-inline-hbox { width: auto; margin: 0; }
.wb-where-row .widget-label { width: auto; max-width: none; font-weight: 600; }
.wb-where-row input[type=number] { width: 84px; }
.wb-where-worker { border: 1px solid var(--jp-border-color2, #8886); border-radius: 4px;
  padding: 2px 8px; }
.wb-where-row .jupyter-button { width: auto; margin: 0; font-size: 14px; }
.wb-where-row { margin-bottom: 6px; }
.wb-where .wb-said { font-weight: 600; }
.wb-where .wb-table tr[aria-current] td { font-weight: 600; }
.wb-where-bar { display: inline-block; height: 10px; margin-right: 6px;
  border: 1px solid currentColor; background: repeating-linear-gradient(45deg, currentColor 0 2px,
  transparent 2px 5px); }
"""
)
"""CSS for the page of placement; colours come from JupyterLab's theme where there is one."""


def schemes_table(schemes: Schemes, chosen: str) -> str:
    """Return how even every scheme is and what it has moved, as HTML; ``chosen`` is marked."""
    moves = {scheme: schemes.moved(scheme) for scheme in schemes.tables}
    columns = ("scheme", "balance", "chunks", "moved", "share", "fair")
    body = ""
    for scheme, after in schemes.tables.items():
        cells = [f"{'▸ ' if scheme == chosen else ''}{escape(scheme)}", f"{after.balance:.2f}"]
        cells += _moved(moves[scheme])
        mark = ' aria-current="true"' if scheme == chosen else ""
        body += f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    titles = "".join(f'<th scope="col">{escape(text(f"where.{each}"))}</th>' for each in columns)
    return (
        f'{table.SCROLL}<table class="wb-table">'
        f"<caption>{escape(text('where.caption'))}</caption>"
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _moved(move: Move | None) -> list[str]:
    if move is None:
        return ["–"] * 4
    bar = f'<span class="wb-where-bar" style="width:{100 * move.share:.0f}px"></span>'
    return [
        f"{move.chunks:,}",
        in_binary_units(move.bytes),
        f"{bar}{move.share:.1%}",
        f"{move.fair:.1%}",
    ]
