"""What all figures have in common: an empty figure in the panel's look, its legend, its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from bokeh.core.properties import value
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    FactorRange,
    HoverTool,
    InlineStyleSheet,
    Text,
)
from bokeh.models.annotations import Label, Legend, LegendItem, Title
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure

from workbench.ui import look
from workbench.ui.language import known, text

Columns = dict[str, list[Any]]
"""The data of a figure: lists of equal length, by name."""

_LEGEND = f".bk-label {{ color: var(--bk-label-text-color, {look.INK}) !important; }}"
"""Bokeh asks for a theme's colour before a legend is on the page, where there is none yet."""

_AS_THE_THEME = """
const view = cb_context.index.find_one(fig)
const style = view == null ? null : getComputedStyle(view.el)
const color = style?.getPropertyValue("--bk-text-color").trim() ?? ""
if (/^(#|rgba?\\(|[a-z]+$)/i.test(color)) // what Bokeh can read
  for (const text of texts) text.setv({text_color: {value: color}}, {sync: false})
"""

_AS_THE_DATA = """
const drawn = source.data[first].length > 0
const is_any = (each) => typeof each == "number" ? !isNaN(each) : each?.length > 0
const has_any = (column) => column.some(is_any)
const show = (part, visible) => part.setv({visible}, {sync: false})
show(empty, !drawn)
for (const part of frame) show(part, drawn)
items.forEach((item, n) => show(item, has_any(Array.from(source.data[columns[n]]))))
const labels = rows == null ? [] : [...new Set(source.data.label)].reverse()
if (labels.some((label) => !rows.factors.includes(label)))
  rows.setv({factors: labels}, {sync: false})
"""
"""A view that is opened later begins as the figure was sent, and gets new data alone: to send it
whole has every view that there is made anew, which takes as long as many steps of a run."""


@dataclass(frozen=True)
class Chart:
    """One figure with its data and what it says while there is none.

    Attributes
    ----------
    some:
        Entries of the legend for what is not in every figure: by the key of its text the column
        that has something where it is.
    """

    name: str
    figure: figure
    source: ColumnDataSource
    empty: Label
    some: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        rows = self.figure.y_range
        some = [item for item in self._items() if item.name in self.some]
        args = {
            "source": self.source,
            "first": next(iter(self.source.data)),
            "empty": self.empty,
            "frame": self._frame(),
            "items": some,
            "columns": [self.some[str(item.name)] for item in some],
            "rows": rows if isinstance(rows, FactorRange) else None,
        }
        self.source.js_on_change("data", CustomJS(args=args, code=_AS_THE_DATA))

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        _name_axes(self.name, self.figure)
        self.empty.text = text(f"figure.{self.name}.empty")
        for item in self._items():
            if item.name is not None:
                item.label = value(text(item.name))
        for tool in self.figure.tools:
            if isinstance(tool, HoverTool):
                _name_lines(tool)

    def draw(self, columns: Columns) -> bool:
        """Show new data; return whether anything had to be sent to the browser."""
        if columns == self.source.data:
            return False
        if isinstance(self.figure.y_range, FactorRange):
            # Upwards is the direction of the axis, downwards that of reading.
            factors = list(reversed(dict.fromkeys(columns["label"])))
            if factors != self.figure.y_range.factors:
                self.figure.y_range.factors = factors
        self.source.data = columns
        self._show_frame(bool(next(iter(columns.values()))))
        for item in self._items():
            if column := self.some.get(item.name or ""):
                item.visible = has_any(columns[column])
        return True

    def _items(self) -> Iterator[LegendItem]:
        for legend in self.figure.legend:
            yield from (item for item in legend.items if isinstance(item, LegendItem))

    def _show_frame(self, drawn: bool) -> None:
        """Show axes and legend where there is data, else what the figure says without."""
        self.empty.visible = not drawn
        for part in self._frame():
            part.visible = drawn

    def _frame(self) -> list[Any]:
        return [*self.figure.axis, *self.figure.grid, *self.figure.legend]


def has_any(column: Iterable[Any]) -> bool:
    """Return whether anything of a column is drawn: neither NaN nor empty."""
    return any(not isnan(each) if isinstance(each, float) else bool(each) for each in column)


def blank_figure(name: str, **options: Any) -> figure:
    """Return a figure without tools, as wide as its place, whose text is read from the back row.

    Its title and its axes have the texts ``figure.NAME.title``, ``.x`` and ``.y``.
    """
    fig = figure(
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
        min_width=280,
        **options,
    )
    _name_axes(name, fig)
    assert isinstance(fig.title, Title)
    fig.title.text_color = look.INK
    fig.title.text_font = look.FONT
    fig.title.text_font_size = look.TITLE_SIZE
    fig.axis.axis_label_text_font = look.FONT
    fig.axis.axis_label_text_font_size = look.TEXT_SIZE
    fig.axis.axis_label_text_font_style = "normal"
    fig.axis.axis_label_text_color = look.INK
    fig.axis.major_label_text_font = look.FONT
    fig.axis.major_label_text_font_size = look.TEXT_SIZE
    fig.axis.major_label_text_color = look.INK
    fig.axis.axis_line_color = look.INK
    fig.axis.major_tick_line_color = look.INK
    fig.axis.minor_tick_line_color = None
    fig.grid.grid_line_color = look.INK
    fig.grid.grid_line_alpha = 0.25
    fig.axis.visible = fig.grid.visible = False  # until there is data
    return fig


def _name_axes(name: str, fig: figure) -> None:
    assert isinstance(fig.title, Title)
    fig.title.text = text(f"figure.{name}.title")
    for axis, key in ((fig.xaxis, f"figure.{name}.x"), (fig.yaxis, f"figure.{name}.y")):
        axis.axis_label = text(key) if known(key) else None


def add_texts(fig: figure, texts: Sequence[GlyphRenderer]) -> None:
    """Have text that stands at points follow the theme, as Bokeh does for all other text.

    That is when a browser has drawn the figure, and when its width changes; see ``STYLE``.
    """
    glyphs = [
        glyph
        for text in texts
        for glyph in (text.glyph, text.nonselection_glyph, text.muted_glyph)
        if isinstance(glyph, Text)
    ]
    follow = CustomJS(args={"fig": fig, "texts": glyphs}, code=_AS_THE_THEME)
    fig.js_on_change("inner_width", follow)


def add_hover(fig: figure, renderers: Sequence[Any], lines: Mapping[str, str]) -> None:
    """Tell more where the mouse is: for each key of a text, or column, what stands beside it."""
    hover = HoverTool(renderers=list(renderers), tags=[list(each) for each in lines.items()])
    _name_lines(hover)
    fig.add_tools(hover)


def _name_lines(hover: HoverTool) -> None:
    hover.tooltips = [(text(key) if known(key) else key, shown) for key, shown in hover.tags]


def add_legend(fig: figure, items: Mapping[str, Any]) -> None:
    """Name renderers in a legend, by the keys of their texts."""
    place_legend(
        fig,
        Legend(
            items=[
                LegendItem(label=value(text(key)), renderers=[renderer], name=key)
                for key, renderer in items.items()
            ]
        ),
    )


def place_legend(fig: figure, legend: Legend, columns: int | None = None) -> None:
    """Put the legend above the figure, where it hides no data; in lines of ``columns`` entries."""
    legend.orientation = "horizontal"
    legend.ncols = columns or "auto"
    legend.label_text_font = look.FONT
    legend.label_text_font_size = look.TEXT_SIZE
    legend.label_text_color = look.INK
    legend.stylesheets = [InlineStyleSheet(css=_LEGEND)]
    legend.background_fill_alpha = 0
    legend.border_line_alpha = 0
    legend.update(padding=2, margin=2)
    legend.glyph_width = 26
    legend.spacing = 14
    legend.visible = False  # until there is data, as axes and grid
    fig.add_layout(legend, "above")


def add_empty_text(fig: figure, name: str) -> Label:
    """Add what the figure says before it has data, and return it."""
    label = Label(
        x=12, y=110, x_units="screen", y_units="screen", text=text(f"figure.{name}.empty"),
        text_font=look.FONT, text_font_size=look.TEXT_SIZE, text_color=look.INK,
    )  # fmt: skip
    fig.add_layout(label)
    return label
