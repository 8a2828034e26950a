"""What the pages are made of: each part draws one thing from the board, if it has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Protocol

from bokeh.layouts import column, row
from bokeh.models import LayoutDOM
from bokeh.models.widgets import Div, Select

from workbench.dashboard.board import Board
from workbench.plan import Plan
from workbench.ui import figures, look, texts
from workbench.ui.accuracy_figure import accuracy_chart, accuracy_columns
from workbench.ui.chart import Chart, Columns
from workbench.ui.cut_table import cut_columns
from workbench.ui.drawing import WIDTH
from workbench.ui.figure_table import data_table, how_to_read
from workbench.ui.figures import Curve
from workbench.ui.language import LANGUAGES, current, speaking, text, translate
from workbench.ui.layer_picture import first_layer, picture
from workbench.ui.memory_figure import Told, memory_chart, memory_columns, memory_of
from workbench.ui.throughput_figure import throughput_chart, throughput_columns
from workbench.ui.timeline_figure import timeline_chart, timeline_columns

INK = "#333"
"""Text on Dask's light pages."""


GOING_ON = ("starting", "running", "stopping")
"""Status of what changes by itself."""


class Part(Protocol):
    """A piece of a page."""

    @property
    def root(self) -> LayoutDOM:
        """What stands on the page."""

    def draw(self, board: Board) -> None:
        """Show what the board has now."""


class FigurePart:
    """A figure, and how its columns come from the board.

    ``below`` says how to read it, and has its data as a table once nothing goes on: while something
    does, a new table every moment would close the one that is looked at.
    """

    def __init__(self, chart: Chart, columns: Callable[[Board], Columns]) -> None:
        self.name, self._chart, self._columns = chart.name, chart, columns
        self.root: LayoutDOM = chart.figure
        # What the panel says there is to press a button, which there is none here.
        chart.empty.text = text(f"dashboard.empty.{chart.name}")
        self.below = Div(
            text=_folded("how", how_to_read(chart.name)),
            sizing_mode="stretch_width",
            styles={**_STYLES, "font-size": "13px"},
        )

    def draw(self, board: Board) -> None:
        """Show what the board has now."""
        columns = self._columns(board)
        self._chart.draw(columns)
        if board.facts.get("status") not in GOING_ON:
            how = _folded("how", how_to_read(self.name))
            shown = how + _folded("data", data_table(self.name, columns))
            if shown != self.below.text:
                self.below.text = shown


class Headline:
    """What goes on, in one line, and beside it the switch of the page's language."""

    def __init__(self) -> None:
        self._line = Div(
            text=text("dashboard.nothing"), sizing_mode="stretch_width", styles=_STYLES
        )
        switch = Div(text=_switch(), styles={**_STYLES, "white-space": "nowrap"})
        self.root: LayoutDOM = row(self._line, switch, sizing_mode="stretch_width")

    def draw(self, board: Board) -> None:
        """Show what the board has now."""
        self._line.text = escape(headline(board.facts))


def _switch() -> str:
    """Return links to this page in every language; that which it speaks is no link."""
    spoken = current()
    named = (
        f'<b lang="{code}">{name}</b>'
        if code == spoken
        else f'<a href="?lang={code}" lang="{code}" style="color: inherit">{name}</a>'
        for code, name in LANGUAGES.items()
    )
    label = escape(text("dashboard.language"))
    return f'<span role="group" aria-label="{label}">{" | ".join(named)}</span>'


class Footer:
    """How many pages are open: each costs the scheduler a little."""

    def __init__(self) -> None:
        self.root = Div(text="", sizing_mode="stretch_width", styles=_STYLES)

    def draw(self, board: Board) -> None:
        """Show what the board has now."""
        self.root.text = text("dashboard.foot", pages=texts.count(len(board.pages), "page"))


class CutPart:
    """A menu of the plan's layers and the picture of the chosen one: who holds what (predicted)."""

    def __init__(self) -> None:
        self._layer = Select(title=text("dashboard.layer"), visible=False)
        self._layer.on_change("value", lambda _name, _old, _new: self._picture())
        self._language = current()
        self._shown = Div(
            text=text("plan.serial"),
            sizing_mode="stretch_width",
            styles=_STYLES,
            stylesheets=[_AS_WIDE],
        )
        self._plan: Plan | None = None
        self.root: LayoutDOM = column(self._layer, self._shown, sizing_mode="stretch_width")

    def draw(self, board: Board) -> None:
        """Show what the board has now."""
        plan: Plan | None = board.facts.get("plan")
        if plan is self._plan:
            return
        self._plan = plan
        if plan is None or plan.ranks == 1:
            self._layer.visible = False
            self._shown.text = text("plan.serial")
            return
        self._layer.visible = True
        layers = [planned for planned in plan.layers if planned.layer.arguments]
        names = [planned.layer.name for planned in layers]
        options: list[str | tuple[Any, str]] = [*dict.fromkeys(names)]
        self._layer.options = options
        if self._layer.value in names:
            self._picture()
        else:
            self._layer.value = first_layer(plan)

    def _picture(self) -> None:
        if self._plan is not None and self._layer.value:
            with speaking(self._language):  # also where somebody has chosen another layer
                drawn = picture(self._plan, self._layer.value)
                about = _folded("how", how_to_read("cut"))
                data = cut_columns(self._plan, self._layer.value)
                about += _folded("data", data_table("cut", data))
            strategy = f"<p><b>{escape(self._plan.strategy)}</b></p>"
            shown = f'<div style="max-width: {WIDTH}px">{drawn.svg}</div>'
            self._shown.text = f"{strategy}{shown}{about}"


def _folded(key: str, content: str) -> str:
    """Return what stands below a figure, folded: how to read it, or its data."""
    title = escape(text(f"about.{key}"))
    return f'<details style="margin-top: 6px"><summary>{title}</summary>{content}</details>'


_AS_WIDE = ":host .bk-clearfix { width: 100%; }"
_STYLES: dict[str, str | None] = {
    "font-family": look.FONT,
    "font-size": look.TEXT_SIZE,
    "color": INK,
}


def headline(facts: Mapping[str, Any]) -> str:
    """Return what goes on, of what, how far, and for how long."""
    if "status" not in facts:
        return text("dashboard.nothing")
    status = facts["status"]
    done, total = f"{facts['done']:,}", f"{facts['total']:,}"
    parts = [
        text("dashboard.title", workload=facts["workload"], batch=f"{facts['batch']:,}"),
        text(f"dashboard.status.{status}"),
        translate(facts["doing"]) if status == "running" and "strategy" not in facts else "",
        text("dashboard.training", strategy=facts["strategy"]) if "strategy" in facts else "",
        text("dashboard.step", done=done, total=total),
        texts.time_left(facts["eta_s"]) if facts["eta_s"] and status == "running" else "",
    ]
    return " · ".join(filter(None, parts))


def speedup() -> FigurePart:
    """Return the figure of speedup against cores."""
    return FigurePart(figures.speedup_chart(), lambda board: figures.speedup_columns(_rows(board)))


def share() -> FigurePart:
    """Return the bars of where the time of a step goes."""
    return FigurePart(figures.share_chart(), lambda board: figures.share_columns(_rows(board)))


def loss() -> FigurePart:
    """Return the figure of loss against time."""
    return FigurePart(figures.loss_chart(), lambda board: figures.loss_columns(_curves(board)))


def throughput() -> FigurePart:
    """Return the figure of samples per second against time."""
    return FigurePart(throughput_chart(), lambda board: throughput_columns(_curves(board)))


def accuracy() -> FigurePart:
    """Return the figure of accuracy against time."""
    return FigurePart(accuracy_chart(), lambda board: accuracy_columns(_curves(board)))


def memory() -> FigurePart:
    """Return the bars of what each rank keeps."""
    return FigurePart(memory_chart(), lambda board: memory_columns(memory_of(_memory(board))))


def timeline() -> FigurePart:
    """Return the figure of one step of all ranks."""
    return FigurePart(timeline_chart(), lambda board: timeline_columns(board.facts.get("timeline")))


def _rows(board: Board) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = board.facts.get("rows", ())
    return rows


def _curves(board: Board) -> list[Curve]:
    """Return a curve per timed run."""
    curves = []
    for name, steps in board.series.items():
        kind, _, run = name.partition(" ")
        about = board.facts.get(f"run {run}")
        if kind == "steps" and about is not None and steps:
            time_s, losses, rates = zip(*steps, strict=True)
            label, style = texts.row_label(about), look.style(about)
            score, batches = board.facts.get(f"accuracy {run}"), board.series.get(f"batches {run}")
            curves.append(Curve(label, style, time_s, losses, rates, score, batches or ()))
    return curves


def _memory(board: Board) -> Iterator[Told]:
    """Yield what is told of the memory of each timed run."""
    for name, about in board.facts.items():
        kind, _, run = name.partition(" ")
        if kind == "run" and (sizes := board.facts.get(f"memory {run}")) is not None:
            yield (texts.row_label(about), *sizes)
