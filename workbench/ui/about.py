"""What stands below a figure: how to read it, and its data as a table, both folded."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import repeat
from math import isfinite
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.ui import table
from workbench.ui.chart import Columns
from workbench.ui.language import text
from workbench.ui.linking import marks
from workbench.ui.widget import Fold, box, put

SHOWN = {
    "speedup": ("label", "cores", "speedup", "low", "high", "repeats"),
    "loss": ("label", "end_s", "end_loss"),
    "throughput": ("label", "end_s", "end_rate"),
    "accuracy": ("label", "end_s", "accuracy", "end_batch"),
    "share": ("label", "compute", "comm", "wait", "optimizer", "other", "total"),
    "memory": ("label", "measured", "predicted"),
    "timeline": ("label", "kind", "name", "start", "lasts", "sent"),
}
"""Columns of each figure that its table has; the texts ``data.COLUMN`` are their headings."""

MOST_ROWS = 200
"""Rows of a table; a timeline can have thousands of bars."""


class About:
    """The two folds below one figure."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._how, self._data = widgets.HTML(), widgets.HTML()
        self._folds = {"how": Fold(self._how), "data": Fold(self._data)}
        self.root = box([fold.root for fold in self._folds.values()], "wb-about")

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        for key, fold in self._folds.items():
            fold.say(text(f"about.{key}"))
        put(self._how, how_to_read(self.name))

    def show(self, columns: Columns) -> None:
        """Show the figure's data."""
        put(self._data, data_table(self.name, columns))


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
