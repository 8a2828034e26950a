"""The figure of test accuracy against time: how good each run had become when it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, DataRange1d
from bokeh.models.annotations import Legend, LegendItem

from workbench.ui import look
from workbench.ui.chart import (
    Chart,
    Columns,
    add_empty_text,
    add_hover,
    blank_figure,
    place_legend,
)
from workbench.ui.figures import Curve


def accuracy_chart() -> Chart:
    """Return the figure of test accuracy in per cent against training time, one point per run."""
    fig = blank_figure(
        "accuracy",
        x_range=DataRange1d(start=0, range_padding=0.2),
        y_range=DataRange1d(range_padding=0.4),
        height=250,
    )
    source = ColumnDataSource(data=accuracy_columns([]), name="wb-accuracy")
    points = fig.scatter(
        "end_s", "accuracy", source=source, marker="marker", color="color", size=14,
        fill_alpha="fill", line_width=2.5,
    )  # fmt: skip
    add_hover(fig, [points], {"": "@label", "hover.accuracy": "@accuracy{0.0} %"})
    drawn: list[Any] = [points]
    by_label = LegendItem(label={"field": "label"}, renderers=drawn)
    place_legend(fig, Legend(items=[by_label]), columns=3)
    return Chart("accuracy", fig, source, add_empty_text(fig, "accuracy"))


def accuracy_columns(curves: Sequence[Curve]) -> Columns:
    """Return the columns of the figure: runs that have ended and were scored."""
    scored = [curve for curve in curves if curve.accuracy is not None and len(curve.time_s)]
    return {
        "end_s": [curve.time_s[-1] for curve in scored],
        "accuracy": [100 * (curve.accuracy or 0.0) for curve in scored],
        "label": [curve.label for curve in scored],
        "color": [curve.style.color for curve in scored],
        "marker": [curve.style.marker for curve in scored],
        "fill": [0.0 if curve.style is look.SERIAL_ALL_THREADS else 1.0 for curve in scored],
    }
