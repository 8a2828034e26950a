"""What was measured as HTML that needs no JavaScript: sentences, the table, still figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.ui import stills, table
from workbench.ui.language import current, text
from workbench.ui.pace import rests
from workbench.ui.state import State
from workbench.ui.texts import Row
from workbench.ui.widget import hint, put


def still_page(
    said: Sequence[str], rows: Sequence[Row], measured: Any, names: Sequence[str] | None = None
) -> str:
    """Return sentences, and what was measured if anything was; all text is escaped.

    Parameters
    ----------
    rows:
        What the table shows.
    measured:
        A comparison, or None.
    names:
        Which of its figures, see :func:`workbench.ui.stills.svg`.
    """
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in said if sentence)
    if not rows:
        return lines
    drawn = [] if measured is None else stills.available(measured)
    chosen = [name for name in drawn if names is None or name in names]
    figures = stills.svg(measured, chosen) if chosen else ""
    wide = f'<div class="wb-scroll" tabindex="0">{figures}</div>' if figures else ""
    return f"<style>{table.STYLE}</style>{lines}{table.rows_table(rows)}{wide}"


class StillFigures:
    """Still figures in the panel, for a page that shows widgets and cannot draw live figures.

    They are made anew whenever a run ends, but not where that would slow what is measured.
    """

    def __init__(self) -> None:
        self.root = widgets.HTML()
        self._shown: object = None

    def show(self, wanted: bool, state: State, measured: Any) -> None:
        """Show the figures of what was measured last, or nothing if they are not wanted."""
        if not wanted:
            put(self.root, "")
            self._shown = None
            return
        now = (state.job, state.status, state.turn, current())
        late = self._shown is not None and state.crowded and not rests(state)
        if now == self._shown or late:
            return
        self._shown = now
        there = measured is not None and bool(state.rows) and bool(stills.available(measured))
        sentence = text("static.figures" if there else "static.no_figures")
        drawn = f'<div class="wb-scroll" tabindex="0">{stills.svg(measured)}</div>' if there else ""
        put(self.root, hint(sentence) + drawn)
