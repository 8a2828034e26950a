"""The pages: what each is made of, and how often it is drawn."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import LayoutDOM
from bokeh.models.widgets import Div
from distributed import Scheduler
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import env

from workbench.dashboard import parts
from workbench.dashboard.board import Board
from workbench.dashboard.parts import Part
from workbench.ui.language import LANGUAGES, preferred, speaking, text
from workbench.ui.pace import TIMED, TRAINED

EVERY_MS = 500
"""Between two looks at the board; nothing is done if it has no news."""

_INKS = {f"--bk-{of}text-color": parts.INK for of in ("axis-label-", "major-label-", "label-", "")}
"""Titles, axes and legends as dark as other text: Dask's pages are light, whatever the theme."""

logger = logging.getLogger(__name__)


class Page:
    """One open page: its parts, and what they have drawn last."""

    def __init__(self, scheduler: Scheduler, shown: Sequence[Part], language: str) -> None:
        self._scheduler, self._parts, self._language = scheduler, shown, language
        self._drawn: tuple[int, int] | None = None
        self._drawn_s = 0.0
        self._moment: tuple[object, ...] = ()
        self._broken: set[Part] = set()

    def update(self) -> None:
        """Draw what is new; never raises, as Dask's scheduler has better to do."""
        board = self._scheduler.plugins.get(Board.name)
        if not isinstance(board, Board):
            return
        board.pages.add(self)
        now = board.version, len(board.pages)
        if now == self._drawn or self._can_wait(board):
            return
        self._drawn, self._drawn_s = now, time.monotonic()
        with speaking(self._language):
            for part in self._parts:
                self._draw(part, board)

    def _can_wait(self, board: Board) -> bool:
        """Return whether drawing now would slow what is drawn, and nothing has begun or ended."""
        facts, before = board.facts, self._moment
        runs = sum(name.startswith("run ") for name in facts)
        self._moment = facts.get("status"), facts.get("workload"), runs
        if self._moment != before or not facts.get("crowded") or facts.get("status") != "running":
            return False
        pace = TRAINED if "strategy" in facts else TIMED
        return time.monotonic() < self._drawn_s + pace.moving_s

    def _draw(self, part: Part, board: Board) -> None:
        try:
            part.draw(board)
            self._broken.discard(part)
        except Exception:
            if part not in self._broken:  # said once
                logger.exception("A page of the workbench cannot be drawn.")
            self._broken.add(part)


def _open(
    build: Callable[[], tuple[Sequence[Part], LayoutDOM]],
    title: str,
    whole: bool,
    scheduler: Scheduler,
    extra: dict[str, Any],
    doc: Document,
) -> None:
    """Make a page for a browser that asks for it; with ``whole``, below the dashboard's own bar."""
    language = _language(doc)
    try:
        with speaking(language):
            shown, root = build()
        page = Page(scheduler, shown, language)
        page.update()
        root.styles = {**root.styles, **_INKS}  # type: ignore[dict-item]
        doc.add_root(root)
        add_periodic_callback(doc, page, EVERY_MS)
    except Exception:
        logger.exception("A page of the workbench cannot be made.")
        with speaking(language):
            doc.add_root(Div(text=text("dashboard.broken")))
    doc.title = f"Dask: {title}"
    if whole:
        doc.template = env.get_template("simple.html")
        doc.template_variables.update(extra)


def _language(doc: Document) -> str:
    """Return what the page's address asks for, ``?lang=zh``, or else this process's language.

    What anybody may write into an address is no reason to fail: unknown languages are left out.
    """
    request = getattr(doc.session_context, "request", None)  # None without a server
    asked = [] if request is None else request.arguments.get("lang", [])
    code = asked[-1].decode("ascii", "replace") if asked else ""
    return code if code in LANGUAGES else preferred()


def _whole() -> tuple[Sequence[Part], LayoutDOM]:
    """Return everything on one page."""
    head, speedup, share, foot = parts.Headline(), parts.speedup(), parts.share(), parts.Footer()
    loss, throughput, accuracy = parts.loss(), parts.throughput(), parts.accuracy()
    timeline, memory, cut = parts.timeline(), parts.memory(), parts.CutPart()
    root = column(
        head.root,
        row(_read(speedup), _read(loss), sizing_mode="stretch_width"),
        _read(timeline),
        _read(share),
        row(_read(throughput), _read(accuracy), sizing_mode="stretch_width"),
        _read(memory),
        cut.root,
        foot.root,
        sizing_mode="stretch_width",
        styles={"padding": "8px 16px", "box-sizing": "border-box"},
    )
    shown = head, speedup, loss, timeline, share, throughput, accuracy, memory, cut, foot
    return shown, root


def _metrics() -> tuple[Sequence[Part], LayoutDOM]:
    """Return what a run makes of its time and memory, below each other."""
    curves = parts.throughput(), parts.loss(), parts.accuracy()
    shown = parts.Headline(), *curves, parts.share(), parts.memory()
    return shown, column(*(_filling(part) for part in shown), sizing_mode="stretch_both")


def _alone(make: Callable[[], Part]) -> Callable[[], tuple[Sequence[Part], LayoutDOM]]:
    """Return what builds a page of one part, as large as its pane."""

    def build() -> tuple[Sequence[Part], LayoutDOM]:
        head, part = parts.Headline(), make()
        return (head, part), column(head.root, _filling(part), sizing_mode="stretch_both")

    return build


def _filling(part: Part) -> LayoutDOM:
    if isinstance(part, parts.FigurePart):
        part.root.update(sizing_mode="stretch_both", min_height=180)
        return column([part.root, part.below], sizing_mode="stretch_both")
    return part.root


def _read(part: parts.FigurePart) -> LayoutDOM:
    """Return a figure with how to read it and its data, folded."""
    return column([part.root, part.below], sizing_mode="stretch_width")


def _page(
    build: Callable[[], tuple[Sequence[Part], LayoutDOM]], title: str, whole: bool = False
) -> Callable[[Scheduler, dict[str, Any], Document], None]:
    def make(scheduler: Scheduler, extra: dict[str, Any], doc: Document) -> None:
        _open(build, title, whole, scheduler, extra, doc)

    return make


PAGES = {
    "/workbench": _page(_whole, "Workbench", whole=True),
    "/individual-workbench-speedup": _page(_alone(parts.speedup), "Workbench speedup"),
    "/individual-workbench-timeline": _page(_alone(parts.timeline), "Workbench timeline"),
    "/individual-workbench-metrics": _page(_metrics, "Workbench metrics"),
    "/individual-workbench-cut": _page(_alone(parts.CutPart), "Workbench cut"),
}
"""What makes each page, by its address; the JupyterLab pane lists the individual ones."""
