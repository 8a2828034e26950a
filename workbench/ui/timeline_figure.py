"""The figure of one step: what every rank did when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bokeh.models import (
    BoxZoomTool,
    CDSView,
    ColumnDataSource,
    CustomJS,
    DataRange1d,
    FactorRange,
    GroupFilter,
    PanTool,
    ResetTool,
    WheelZoomTool,
)
from bokeh.models.annotations import Title
from bokeh.plotting import figure

from workbench.timeline import Timeline
from workbench.ui import look
from workbench.ui.chart import (
    Chart,
    Columns,
    add_empty_text,
    add_hover,
    add_legend,
    blank_figure,
)
from workbench.ui.collective_names import whole_name
from workbench.ui.language import text, translate
from workbench.ui.linking import layer_of, link

NOWHERE = "nowhere"
"""A row that there is not: what stands there is the legend's, and is there before any data are."""

MOST_BARS = 100_000
"""Bars that a browser gets of one step; where there are more, the shortest are left out."""

MOST_AT_ONCE = 5_000
"""Where there are more bars, those in sight are drawn, and of those at one place the longest."""

PLACES = 500
"""Bars that can be told apart beside each other: the figure has about twice as many pixels."""

_DRAW_IN_SIGHT = f"""
if (whole.waits || whole.data.start.length === 0) return
whole.waits = true
setTimeout(() => {{
  whole.waits = false
  const {{start, stop, rank}} = whole.data
  const width = x_range.end - x_range.start
  if (start.length === 0 || !(width > 0)) return
  // A margin on both sides, so that there is something to see until the next time.
  const low = x_range.start - width / 4, high = x_range.end + width / 4
  const place_ms = width / {PLACES}
  const longest = new Map()
  const found = []
  for (let i = 0; i < start.length; i++) {{
    if (stop[i] < low || start[i] > high) continue
    if (stop[i] - start[i] >= place_ms) {{
      found.push(i)
      continue
    }}
    const at = {2 * PLACES} * rank[i] + Math.floor((start[i] - low) / place_ms)
    const other = longest.get(at)
    if (other == null || stop[i] - start[i] > stop[other] - start[other]) longest.set(at, i)
  }}
  found.push(...longest.values())
  found.sort((a, b) => a - b)
  const data = {{}}
  for (const [name, column] of Object.entries(whole.data)) data[name] = found.map((i) => column[i])
  seen.setv({{data}}, {{sync: false}})
}}, 150)
"""


@dataclass(frozen=True)
class TimelineChart(Chart):
    """A figure whose title names the strategy and the step.

    Attributes
    ----------
    whole:
        All bars, where they are too many to draw at once; then ``source`` has those in sight.
    """

    whole: ColumnDataSource

    def draw(self, columns: Columns) -> bool:
        """Show new data; return whether anything had to be sent to the browser."""
        many = len(columns["start"]) > MOST_AT_ONCE
        if many and columns == self.whole.data:
            return False
        news = super().draw(_overview(columns) if many else columns)
        whole = columns if many else {name: [] for name in columns}
        if whole != self.whole.data:
            self.whole.data = whole
        if news:
            self._say_which()
        return news

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        super().speak()
        self._say_which()

    def _say_which(self) -> None:
        assert isinstance(self.figure.title, Title)
        which = [f": {of}" for of in self.source.data["of"][:1]]
        self.figure.title.text = "".join([text("figure.timeline.title"), *which])


def timeline_chart() -> Chart:
    """Return the figure of one step: a row for each rank, a bar for each span, time to the right.

    It can be zoomed and moved along the time; the colours and hatches are those of all figures. It
    is linked with the picture of the cut, see :mod:`workbench.ui.linking`.
    """
    fig = blank_figure(
        "timeline",
        x_range=DataRange1d(start=0, range_padding=0.02),
        y_range=FactorRange(range_padding=0.1),
        height=230,
    )
    source = ColumnDataSource(data=timeline_columns(None), name="wb-timeline")
    bars = [_bars(fig, source, span) for span in look.SPANS]
    whole = ColumnDataSource(data=timeline_columns(None))
    args = {"whole": whole, "seen": source, "x_range": fig.x_range}
    in_sight = CustomJS(args=args, code=_DRAW_IN_SIGHT)
    whole.js_on_change("data", in_sight)
    fig.x_range.js_on_change("start", in_sight)
    fig.x_range.js_on_change("end", in_sight)
    add_hover(
        fig,
        bars,
        {
            "": "@of",
            "@label": "@kind",
            "hover.what": "@name",
            "hover.lasts": "@lasts{0.000} ms (@start{0.000} +)",
            "hover.sends": "@sent{0,0} B",
        },
    )
    link(fig, source)
    wheel = WheelZoomTool(dimensions="width")
    fig.add_tools(PanTool(dimensions="width"), wheel, BoxZoomTool(dimensions="width"))
    fig.add_tools(ResetTool())
    fig.toolbar_location = "above"
    fig.toolbar.logo = None
    fig.ygrid.grid_line_color = None
    by_kind = {
        f"span.{span.kind}": fig.hbar(y=[NOWHERE], left=[0], right=[0], **_look_of(span))
        for span in look.SPANS
    }
    add_legend(fig, by_kind)
    return TimelineChart("timeline", fig, source, add_empty_text(fig, "timeline"), whole)


def _bars(fig: figure, source: ColumnDataSource, span: look.Span) -> Any:
    """Draw the bars of one kind of span.

    Bokeh makes a hatch that is the same for all bars once, and by a column for every bar anew: that
    took more than 2 ms a bar.
    """
    of_kind = CDSView(filter=GroupFilter(column_name="color", group=span.color))
    return fig.hbar(
        y="label", left="start", right="stop", source=source, view=of_kind, **_look_of(span),
        nonselection_fill_alpha=0.2, nonselection_line_alpha=0.2, nonselection_hatch_alpha=0.1,
    )  # fmt: skip


def _look_of(span: look.Span) -> dict[str, Any]:
    return {
        **{"height": 0.75, "fill_color": span.color, "line_color": span.color},
        **{"hatch_pattern": span.hatch, "hatch_color": "white"},
        **{"hatch_alpha": 0.7, "hatch_scale": 8},
    }


def _overview(columns: Columns) -> Columns:
    """Return the bars that are drawn while all of the step is in sight, as the browser would."""
    start, stop, rank = columns["start"], columns["stop"], columns["rank"]
    place_ms = max(stop) / PLACES
    longest: dict[tuple[int, int], int] = {}
    found = []
    for n, lasts in enumerate(columns["lasts"]):
        place = rank[n], int(start[n] // place_ms)
        if lasts >= place_ms:
            found.append(n)
        elif place not in longest or lasts > stop[longest[place]] - start[longest[place]]:
            longest[place] = n
    found = sorted([*found, *longest.values()])
    return {name: [column[n] for n in found] for name, column in columns.items()}


def timeline_columns(shown: Timeline | None) -> Columns:
    """Return the columns of the figure."""
    bars = shown.bars if shown else ()
    drawn = list(bars)
    if len(bars) > MOST_BARS:
        longest = sorted(bars, key=lambda bar: bar.start_s - bar.stop_s)[:MOST_BARS]
        drawn = sorted(longest, key=lambda bar: (bar.rank, bar.start_s))
    looks = {span.kind: span for span in look.SPANS}
    spans = [looks.get(bar.kind, looks["other"]) for bar in drawn]
    of = text("timeline.of", label=translate(shown.label), step=shown.step + 1) if shown else ""
    return {
        "label": [text("timeline.rank", rank=bar.rank) for bar in drawn],
        "rank": [bar.rank for bar in drawn],
        "layer": [layer_of(bar.name) for bar in drawn],
        "of": [of for _ in drawn],
        "kind": [text(f"span.{span.kind}") for span in spans],
        "name": [whole_name(bar.name) or text("timeline.layers") for bar in drawn],
        "start": [1e3 * bar.start_s for bar in drawn],
        "stop": [1e3 * bar.stop_s for bar in drawn],
        "lasts": [1e3 * (bar.stop_s - bar.start_s) for bar in drawn],
        "sent": [bar.sent_bytes for bar in drawn],
        "color": [span.color for span in spans],
    }
