"""The figure of accuracy against time: of training batches on the way, of test data at the end."""

from __future__ import annotations

import math
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
from workbench.ui.figures import Curve


def accuracy_chart() -> Chart:
    """Return the figure of accuracy in per cent against training time, one line per run.

    The line is the accuracy on the training batch in hand, the marker that on test data.
    """
    fig = blank_figure(
        "accuracy",
        x_range=DataRange1d(start=0, range_padding=0.2),
        y_range=DataRange1d(range_padding=0.2),
        height=250,
    )
    source = ColumnDataSource(data=accuracy_columns([]), name="wb-accuracy")
    lines = fig.multi_line(
        "time_s", "batch_accuracy", source=source, color="color", line_dash="dash", line_width=2,
        alpha=0.7,
    )  # fmt: skip
    points = fig.scatter(
        "end_s", "accuracy", source=source, marker="marker", color="color", size=14,
        fill_alpha="fill", line_width=2.5,
    )  # fmt: skip
    told = {"": "@label", "hover.accuracy": "@accuracy{0.0} %", "hover.batch": "@end_batch{0.0} %"}
    add_hover(fig, [points, lines], told)
    drawn: list[Any] = [points, lines]
    by_label = LegendItem(label={"field": "label"}, renderers=drawn)
    place_legend(fig, Legend(items=[by_label]), columns=3)
    return Chart("accuracy", fig, source, add_empty_text(fig, "accuracy"))


def accuracy_columns(curves: Sequence[Curve]) -> Columns:
    """Return the columns of the figure: runs of which any accuracy is known.

    ``accuracy`` is that on test data, NaN before a run has ended; ``end_batch`` the last one of a
    training batch, NaN where there is none.
    """
    known = [c for c in curves if len(c.time_s) and (c.batches or c.accuracy is not None)]
    batches = [list(zip(*curve.batches, strict=True)) or [(), ()] for curve in known]
    of_batches = [[100 * accuracy for accuracy in each] for _, each in batches]
    return {
        "time_s": [list(times) for times, _ in batches],
        "batch_accuracy": of_batches,
        "end_s": [curve.time_s[-1] for curve in known],
        "accuracy": [math.nan if c.accuracy is None else 100 * c.accuracy for c in known],
        "end_batch": [each[-1] if each else math.nan for each in of_batches],
        "label": [curve.label for curve in known],
        "color": [curve.style.color for curve in known],
        "dash": [curve.style.dash for curve in known],
        "marker": [curve.style.marker for curve in known],
        "fill": [curve.style.fill for curve in known],
    }
