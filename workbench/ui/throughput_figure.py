"""The figure of throughput against time: how many samples a second each run trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, DataRange1d
from bokeh.models.annotations import Legend, LegendItem

from workbench.ui.chart import (
    Chart,
    Columns,
    add_empty_text,
    add_hover,
    blank_figure,
    place_legend,
)
from workbench.ui.figures import Curve, thin

SMOOTH = 5
"""Steps of which the median is drawn: single steps of a busy machine jump."""


def throughput_chart() -> Chart:
    """Return the figure of samples per second against training time, one line per run."""
    fig = blank_figure(
        "throughput",
        x_range=DataRange1d(start=0, range_padding=0.1),
        y_range=DataRange1d(start=0, range_padding=0.2),
        height=250,
    )
    source = ColumnDataSource(data=throughput_columns([]), name="wb-throughput")
    lines = fig.multi_line(
        "time_s", "rate", source=source, color="color", line_dash="dash", line_width=2.5, alpha=0.85
    )
    ends = fig.scatter(
        "end_s", "end_rate", source=source, marker="marker", color="color", size=12,
        fill_alpha="fill", line_width=2.5,
    )  # fmt: skip
    add_hover(fig, [ends], {"": "@label", "hover.rate": "@end_rate{0,0}"})
    drawn: list[Any] = [ends, lines]
    by_label = LegendItem(label={"field": "label"}, renderers=drawn)
    place_legend(fig, Legend(items=[by_label]), columns=3)
    return Chart("throughput", fig, source, add_empty_text(fig, "throughput"))


def throughput_columns(curves: Sequence[Curve]) -> Columns:
    """Return the columns of the figure: each line, a running median, thinned, and its end."""
    drawn = [curve for curve in curves if len(curve.samples_per_s) >= SMOOTH]
    rates = [_running_median(curve.samples_per_s) for curve in drawn]
    return {
        "time_s": [thin(curve.time_s[SMOOTH - 1 :]) for curve in drawn],
        "rate": [thin(rate) for rate in rates],
        "end_s": [curve.time_s[-1] for curve in drawn],
        "end_rate": [rate[-1] for rate in rates],
        "label": [curve.label for curve in drawn],
        "color": [curve.style.color for curve in drawn],
        "dash": [curve.style.dash for curve in drawn],
        "marker": [curve.style.marker for curve in drawn],
        "fill": [curve.style.fill for curve in drawn],
    }


def _running_median(values: Sequence[float]) -> list[float]:
    return [
        sorted(values[end - SMOOTH : end])[SMOOTH // 2] for end in range(SMOOTH, len(values) + 1)
    ]
