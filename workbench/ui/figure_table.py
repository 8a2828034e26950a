"""How to read a figure, and its data as a table, in HTML: for the panel and for Dask's pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import repeat
from math import isfinite
from typing import Any

from workbench.ui import table
from workbench.ui.chart import Columns
from workbench.ui.language import text
from workbench.ui.linking import marks

SHOWN = {
    "speedup": ("label", "cores", "speedup", "low", "high", "repeats"),
    "loss": ("label", "end_s", "end_loss"),
    "throughput": ("label", "end_s", "end_rate"),
    "accuracy": ("label", "end_s", "accuracy", "end_batch"),
    "share": ("label", "compute", "comm", "wait", "optimizer", "other", "total"),
    "memory": ("label", "measured", "predicted"),
    "timeline": ("label", "kind", "name", "start", "lasts", "sent"),
    "cut": ("array", "part", "ranks", "kept"),
}
"""Columns of each figure that its table has; the texts ``data.COLUMN`` are their headings."""

MOST_ROWS = 200
"""Rows of a table; a timeline can have thousands of bars."""


def how_to_read(name: str) -> str:
    """Return as HTML what a figure shows, how to read it, and what is usual."""
    return f'<p class="wb-hint">{escape(text(f"figure.{name}.how"))}</p>'


def data_table(name: str, columns: Columns) -> str:
    """Return the data of a figure as an HTML table; a sentence if there is none."""
    shown = SHOWN[name]
    rows = list(zip(*(columns[column] for column in shown), strict=True))
    if not rows:
        return f'<p class="wb-hint">{escape(text(f"figure.{name}.empty"))}</p>'
    head = "".join(f'<th scope="col">{escape(text(f"data.{column}"))}</th>' for column in shown)
    body = "".join(
        f"<tr{marked}>{''.join(f'<td>{escape(_written(cell))}</td>' for cell in row)}</tr>"
        for row, marked in zip(rows[:MOST_ROWS], _marks(columns), strict=False)
    )
    left = len(rows) - MOST_ROWS
    more = f'<p class="wb-hint">{escape(text("data.more", count=left))}</p>' if left > 0 else ""
    return (
        f'{table.SCROLL}<table class="wb-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _marks(columns: Columns) -> Iterator[str]:
    """Yield whose each row is, where that is known; the keyboard gets to the first of each rank."""
    if "of_ranks" in columns:
        for ranks, layer in zip(columns["of_ranks"], columns["layer"], strict=True):
            yield marks(ranks, layer)
        return
    if "rank" not in columns:
        yield from repeat("")
        return
    before = None
    for rank, layer in zip(columns["rank"], columns["layer"], strict=True):
        yield marks([rank], layer, stop=rank != before)
        before = rank


def _written(cell: Any) -> str:
    return (
        f"{cell:,.4g}"
        if isinstance(cell, float) and isfinite(cell)
        else "–"
        if isinstance(cell, float)
        else f"{cell:,}"
        if isinstance(cell, int)
        else cell
    )
