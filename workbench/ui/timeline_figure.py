"""The figure of one step: what every rank did when."""

from __future__ import annotations

from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    DataRange1d,
    FactorRange,
    PanTool,
    ResetTool,
    WheelZoomTool,
)
from bokeh.models.annotations import Title

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
from workbench.ui.language import text, translate
from workbench.ui.linking import layer_of, link

NOWHERE = "nowhere"
"""A row that there is not: what stands there gives the legend its colours and is not drawn."""

MOST_BARS = 20_000
"""Bars drawn of one step; where there are more, the shortest are left out."""


class TimelineChart(Chart):
    """A figure whose title names the strategy and the step."""

    def draw(self, columns: Columns) -> bool:
        """Show new data; return whether anything had to be sent to the browser."""
        news = super().draw(columns)
        if news:
            self._say_which()
        return news

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        super().speak()
        self._say_which()

    def _say_which(self) -> None:
        if which := self.source.data["of"]:
            assert isinstance(self.figure.title, Title)
            self.figure.title.text = f"{text('figure.timeline.title')}: {which[0]}"


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
        output_backend="webgl",
    )
    source = ColumnDataSource(data=timeline_columns(None), name="wb-timeline")
    bars = fig.hbar(
        y="label", left="start", right="stop", height=0.75, source=source,
        fill_color="color", line_color="color", hatch_pattern="hatch", hatch_color="white",
        hatch_alpha=0.7, hatch_scale=8, nonselection_fill_alpha=0.2, nonselection_line_alpha=0.2,
        nonselection_hatch_alpha=0.1,
    )  # fmt: skip
    add_hover(
        fig,
        [bars],
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
        f"span.{span.kind}": fig.hbar(
            y=[NOWHERE], left=[0], right=[0], height=0.75, fill_color=span.color,
            line_color=span.color, hatch_pattern=span.hatch, hatch_color="white",
            hatch_alpha=0.7, hatch_scale=8,
        )
        for span in look.SPANS
    }  # fmt: skip
    add_legend(fig, by_kind)
    return TimelineChart("timeline", fig, source, add_empty_text(fig, "timeline"))


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
        "name": [bar.name or text("timeline.layers") for bar in drawn],
        "start": [1e3 * bar.start_s for bar in drawn],
        "stop": [1e3 * bar.stop_s for bar in drawn],
        "lasts": [1e3 * (bar.stop_s - bar.start_s) for bar in drawn],
        "sent": [bar.sent_bytes for bar in drawn],
        "color": [span.color for span in spans],
        "hatch": [span.hatch for span in spans],
    }
