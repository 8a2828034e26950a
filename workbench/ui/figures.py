"""The three figures, from measured rows and curves to Bokeh.

Each figure reads one ColumnDataSource, so that a change of data is one replacement and one message
to the browser. The ``*_columns`` functions are pure: rows in, columns out, all of them plain lists
of equal length (lists travel to the browser in fewer messages than NumPy arrays).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bokeh.core.properties import value
from bokeh.models import BasicTicker, ColumnDataSource, DataRange1d, FactorRange
from bokeh.models.annotations import Legend, LegendItem

from workbench.amdahl import Fit, axes_of, worth_a_line
from workbench.ui import look, texts
from workbench.ui.chart import (
    Chart,
    Columns,
    add_empty_text,
    add_hover,
    add_legend,
    add_texts,
    blank_figure,
    place_legend,
)
from workbench.ui.guess import Guess
from workbench.ui.language import Say, text
from workbench.ui.texts import Row

BEYOND = 1.5
"""How far the line of Amdahl's law goes on beyond the most cores that were measured."""

MOST_NAMED = 3
"""Strategies that are named at one number of cores, the fastest; hovering names the others."""

NAME_PX, PLOT_PX = 17.0, 230.0
"""Height of a name of a point, and about that of the figure's plot."""

MAX_POINTS = 150
"""Points drawn of one loss curve; more would not be seen, and all are sent again on each change."""


@dataclass(frozen=True)
class Curve:
    """Loss and throughput of a run against its training time in seconds, and its accuracy.

    ``accuracy`` is that on test data at the end; ``batches`` has the time, and the accuracy on the
    training batch in hand, of the steps of which it is known. ``say`` says the label, if that is
    known, so that it can be said again in another language.
    """

    label: str
    style: look.Style
    time_s: Sequence[float]
    loss: Sequence[float]
    samples_per_s: Sequence[float] = ()
    accuracy: float | None = None
    batches: Sequence[tuple[float, float]] = ()
    say: Say | None = field(default=None, compare=False)


def speedup_chart() -> Chart:
    """Return the figure of speedup against cores, with the ideal line and the baselines."""
    fig = blank_figure(
        "speedup",
        x_range=DataRange1d(start=0, range_padding=1.2),
        y_range=DataRange1d(start=0, range_padding=0.4),
        height=330,
    )
    source = ColumnDataSource(data=speedup_columns([]), name="wb-speedup")
    fig.xaxis.ticker = BasicTicker(min_interval=1)
    ideal = fig.line(
        "cores", "cores", source=source, color=look.INK, line_dash="dashed", line_width=2
    )
    alternative = fig.hspan(
        "all_threads", source=source, color=look.INK, line_dash="dotted", line_width=3
    )
    laws = fig.multi_line(
        "law_x", "law_y", source=source, color="color", line_dash="dotdash", line_width=2
    )
    law_names = fig.text(
        "law_end", "law_top", "law_text", source=source, x_offset=6, text_baseline="middle",
        text_font=value(look.FONT), text_font_size=look.TEXT_SIZE, text_color=look.INK,
    )  # fmt: skip
    fig.segment("cores", "low", "cores", "high", source=source, color="color", line_width=3)
    points = fig.scatter(
        "cores", "speedup", source=source, marker="marker", color="color",
        size=15, fill_alpha="fill", line_width=2.5,
    )  # fmt: skip
    names = fig.text(
        "cores", "text_at", "text", source=source, text_align="center", text_baseline="middle",
        y_offset="text_y", text_font=value(look.FONT), text_font_size=look.TEXT_SIZE,
        text_font_style="bold", text_color=look.INK,
    )  # fmt: skip
    add_texts(fig, [law_names, names])
    add_hover(
        fig,
        [points],
        {
            "": "@label",
            "hover.speedup": "@speedup{0.00}× (@low{0.00}–@high{0.00})",
            "hover.repeats": "@repeats",
        },
    )
    keys = {"legend.ideal": ideal, "legend.all_threads": alternative, "legend.law": laws}
    add_legend(fig, keys)
    some = {"legend.all_threads": "all_threads", "legend.law": "law_x"}
    return Chart("speedup", fig, source, add_empty_text(fig, "speedup"), some=some)


def speedup_columns(rows: Sequence[Row], guess: Guess | None = None) -> Columns:
    """Return the columns of the speedup figure, by rising number of cores.

    A guess is an open square. ``all_threads`` is NaN but for the rows of the baseline of one
    process with all threads, whose speedup is also drawn as a line right across. The row of a
    strategy's highest degree carries the line of Amdahl's law, from one core to beyond its own.
    """
    known = sorted((r for r in rows if r["speedup"] is not None), key=texts.cores)
    columns: Columns = {name: [] for name in SPEEDUP}
    of_axes = {law.strategy: law for law in worth_a_line(known)}
    last = {axes_of(row["strategy"]): n for n, row in enumerate(known)}
    laws = {last[axes]: law for axes, law in of_axes.items()}
    names = _names(known)
    for n, row in enumerate(known):
        alone = row["strategy"] == "serial" and row["threads"] > 1
        style = look.style(row)
        point = (
            texts.cores(row),
            row["speedup"],
            _or(row["speedup_min"], row["speedup"]),
            _or(row["speedup_max"], row["speedup"]),
            row["speedup"] if alone else math.nan,
            texts.row_label(row),
            *names[n],
            row["repeats"],
            style.color,
            style.marker,
            style.fill,
            *_law(laws.get(n), texts.cores(known[-1])),
        )
        _add(columns, point)
    if guess is not None:
        told = text("guess.mark", speedup=f"{guess.speedup:.2f}")
        at = guess.speedup
        seen = (look.INK, "square", 0.0)
        point = (guess.cores, at, at, at, math.nan, told, told, at, 22, 0, *seen)
        _add(columns, (*point, *_law(None, 1)))
    return columns


SPEEDUP = (
    *("cores", "speedup", "low", "high", "all_threads", "label", "text", "text_at", "text_y"),
    *("repeats", "color", "marker", "fill", "law_x", "law_y", "law_end", "law_top", "law_text"),
)
"""Columns of the speedup figure."""


def _names(known: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Return the text of each point, where it is drawn, and how many pixels below.

    Strategies above the whiskers of all that used as many cores, the fastest on top, and above the
    point of all threads where that would be in their way; the baseline below its own.
    """
    found = []
    highest = max(
        (max(texts.cores(r), _or(r["speedup_max"], r["speedup"])) for r in known), default=1
    )
    for row in known:
        if texts.is_baseline(row):
            # The dotted line has its name in the legend; text at its point would only collide.
            told = "" if row["threads"] > 1 else text("row.baseline")
            found.append((told, _or(row["speedup_min"], row["speedup"]), 18.0))
            continue
        as_many = [other for other in known if texts.cores(other) == texts.cores(row)]
        beside = [other for other in as_many if not texts.is_baseline(other)]
        beside.sort(key=lambda other: -other["speedup"])
        place, named = beside.index(row), beside[:MOST_NAMED]
        above = max(_or(other["speedup_max"], other["speedup"]) for other in beside)
        names_end = above + NAME_PX * (len(named) + 1) / PLOT_PX * highest
        for other in as_many:
            low, high = (_or(other[f"speedup_{end}"], other["speedup"]) for end in ("min", "max"))
            if low <= names_end:
                above = max(above, high)
        told = f"{texts.row_label(row)} {row['speedup']:.2f}×" if place < len(named) else ""
        found.append((told, above, -14.0 - NAME_PX * (len(named) - 1 - place)))
    return found


def _law(law: Fit | None, most_cores: int) -> tuple[Any, ...]:
    """Return the curve of a fit, its end and what stands there; nothing is drawn of None."""
    if law is None:
        return [], [], math.nan, math.nan, ""
    xs = [1 + n * (BEYOND * most_cores - 1) / 40 for n in range(41)]
    ys = [law.speedup(x) for x in xs]
    share = f"{100 * law.serial_fraction:.0f}"
    return xs, ys, xs[-1], ys[-1], text("figure.speedup.law", strategy=law.strategy, share=share)


def _add(columns: Columns, point: Sequence[Any]) -> None:
    for column, each in zip(columns.values(), point, strict=True):
        column.append(each)


def loss_chart() -> Chart:
    """Return the figure of training loss against time, one line per run."""
    fig = blank_figure(
        "loss",
        x_range=DataRange1d(start=0, range_padding=0.1),
        y_range=DataRange1d(range_padding=0.1),
        height=330,
    )
    source = ColumnDataSource(data=loss_columns([]), name="wb-loss")
    lines = fig.multi_line(
        "time_s", "loss", source=source, color="color", line_dash="dash", line_width=2.5, alpha=0.85
    )
    ends = fig.scatter(
        "end_s", "end_loss", source=source, marker="marker", color="color",
        size=12, fill_alpha="fill", line_width=2.5,
    )  # fmt: skip
    told = {"": "@label", "hover.after": "@end_s{0.00} s", "hover.loss": "@end_loss{0.000}"}
    add_hover(fig, [ends], told)
    drawn: list[Any] = [ends, lines]
    by_label = LegendItem(label={"field": "label"}, renderers=drawn)
    place_legend(fig, Legend(items=[by_label]), columns=3)
    return Chart("loss", fig, source, add_empty_text(fig, "loss"))


def loss_columns(curves: Sequence[Curve]) -> Columns:
    """Return the columns of the loss figure: each line, thinned to ``MAX_POINTS``, and its end."""
    drawn = [curve for curve in curves if len(curve.time_s)]
    return {
        "time_s": [thin(curve.time_s) for curve in drawn],
        "loss": [thin(curve.loss) for curve in drawn],
        "end_s": [curve.time_s[-1] for curve in drawn],
        "end_loss": [curve.loss[-1] for curve in drawn],
        "label": [curve.label for curve in drawn],
        "color": [curve.style.color for curve in drawn],
        "dash": [curve.style.dash for curve in drawn],
        "marker": [curve.style.marker for curve in drawn],
        "fill": [curve.style.fill for curve in drawn],
    }


def curves_of(comparison: Any) -> list[Curve]:
    """Return the loss curves of a comparison's timed runs that have finished a step.

    Runs that prove the result are another workload, in float64, and are left out.
    """
    return [
        Curve(
            texts.row_label(row := {"strategy": run.plan.strategy, "threads": run.threads}),
            look.style(row),
            [record["time_s"] for record in history],
            [record["loss"] for record in history],
            [record["samples_per_s"] for record in history],
            run.accuracy,
            batches_of(history),
            partial(texts.row_label, row),
        )
        for run in comparison.runs
        if run.work is comparison.work and (history := list(run.history))
    ]


def batches_of(history: Sequence[Row], begins_s: float = 0.0) -> list[tuple[float, float]]:
    """Return the time and the accuracy of the steps of which it is known."""
    return [(begins_s + r["time_s"], r["accuracy"]) for r in history if "accuracy" in r]


def share_chart() -> Chart:
    """Return the stacked bars of where the time of one step goes, one bar per row."""
    fig = blank_figure(
        "share",
        x_range=DataRange1d(start=0, range_padding=0.3),
        y_range=FactorRange(factors=[]),
        height=230,
    )
    source = ColumnDataSource(data=share_columns([]), name="wb-share")
    bars = fig.hbar_stack(
        [span.kind for span in look.SPANS], y="label", source=source, height=0.6,
        fill_color=[span.color for span in look.SPANS], line_color=look.INK,
        hatch_pattern=[span.hatch for span in look.SPANS], hatch_color="white", hatch_alpha=0.7,
        hatch_scale=8,
    )  # fmt: skip
    totals = fig.text(
        "total", "label", "text", source=source, x_offset=8, text_baseline="middle",
        text_font=value(look.FONT), text_font_size=look.TEXT_SIZE, text_font_style="bold",
        text_color=look.INK,
    )  # fmt: skip
    add_texts(fig, [totals])
    told = {f"span.{span.kind}": f"@{span.kind}{{0.00}} ms" for span in look.SPANS}
    add_hover(fig, bars, {"": "@label", **told})
    fig.ygrid.grid_line_color = None
    add_legend(fig, {f"span.{span.kind}": bar for span, bar in zip(look.SPANS, bars, strict=True)})
    return Chart("share", fig, source, add_empty_text(fig, "share"))


def share_columns(rows: Sequence[Row]) -> Columns:
    """Return the columns of the bars, in ms; ``other`` is loading and overhead."""
    known: dict[str, Row] = {texts.row_label(row): row for row in rows if row["step_s"] is not None}
    columns: Columns = {"label": list(known), "total": [], "text": []}
    columns |= {span.kind: [] for span in look.SPANS}
    for row in known.values():
        total = row["step_s"] * 1e3
        parts = {
            span.kind: (row.get(f"{span.kind}_share") or 0.0) * total for span in look.SPANS[:-1]
        }
        for kind, part in parts.items():
            columns[kind].append(part)
        columns["other"].append(max(0.0, total - sum(parts.values())))
        columns["total"].append(total)
        columns["text"].append(texts.milliseconds(row["step_s"]))
    return columns


def thin(values: Sequence[float]) -> list[float]:
    """Return at most ``MAX_POINTS`` of ``values``, evenly spread, first and last included."""
    last = len(values) - 1
    if last < MAX_POINTS:
        return list(values)
    return [values[i * last // (MAX_POINTS - 1)] for i in range(MAX_POINTS)]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
