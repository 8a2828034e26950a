"""Still figures of a comparison, drawn without a browser: for slides, hand-ins and web pages.

They show what the live figures show, from the same columns, in the same colours and words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.amdahl import Fit, worth_a_line
from workbench.timeline import timeline_of
from workbench.ui import figures, look
from workbench.ui.accuracy_figure import accuracy_columns
from workbench.ui.axes import TEXT_SIZE, Frame, Key, head
from workbench.ui.canvas import GREY, Canvas, Svg, hatched, marker, width_of
from workbench.ui.chart import Columns, has_any
from workbench.ui.language import text
from workbench.ui.memory_figure import RankMemory, memory_columns, memory_of_runs
from workbench.ui.raster import Raster
from workbench.ui.throughput_figure import throughput_columns
from workbench.ui.timeline_figure import timeline_columns

WIDTH = 800.0
MARGIN = 20.0
LEFT, RIGHT, FOOT = 66.0, 24.0, 52.0
PLOT = 300.0
BAR = 34.0
"""Pixels; ``PLOT`` is the height of the data of a figure with two axes, ``BAR`` that of a row."""

MEMORY = {"measured": " ", "predicted": "/"}
"""Hatches of the bars of memory."""

THINNEST = 0.4
"""Pixels that a span takes at least: what is shorter is drawn with what comes after it."""


def svg(comparison: Any, names: Sequence[str] | None = None) -> str:
    """Return figures of a comparison, one below the other, as an SVG image.

    Parameters
    ----------
    names:
        Which of :func:`available`; all if left out.
    """
    heights = _heights(comparison, names)
    canvas = Svg(WIDTH, sum(heights.values()), _title(comparison))
    _draw(canvas, comparison, heights)
    return canvas.document()


def png(comparison: Any, names: Sequence[str] | None = None) -> bytes:
    """Return figures of a comparison, one below the other, as a PNG image; as of :func:`svg`."""
    heights = _heights(comparison, names)
    canvas = Raster(WIDTH, sum(heights.values()), _title(comparison))
    _draw(canvas, comparison, heights)
    return canvas.png()


def available(comparison: Any) -> list[str]:
    """Return the names of the figures for which something was measured."""
    rows, curves = comparison.rows, figures.curves_of(comparison)
    found = {
        "speedup": any(row["speedup"] is not None for row in rows),
        "loss": any(curves),
        "throughput": bool(throughput_columns(curves)["label"]),
        "accuracy": bool(accuracy_columns(curves)["label"]),
        "share": bool(rows),
        "timeline": timeline_of(comparison.timelines) is not None,
        "memory": bool(memory_columns(_of_ranks(comparison))["label"]),
    }
    return [name for name, there in found.items() if there]


def _heights(comparison: Any, names: Sequence[str] | None) -> dict[str, float]:
    """Return how high each figure is: drawn once on a canvas that nobody sees."""
    blank = Svg(WIDTH, 0, "")
    chosen = available(comparison) if names is None else names
    return {name: _FIGURES[name](blank, 0.0, comparison) for name in chosen}


def _draw(canvas: Canvas, comparison: Any, heights: Mapping[str, float]) -> None:
    top = 0.0
    for name, height in heights.items():
        _FIGURES[name](canvas, top, comparison)
        top += height


def _title(comparison: Any) -> str:
    return str(comparison.to_json()["workload"]["name"])


def _speedup(canvas: Canvas, top: float, comparison: Any) -> float:
    rows = comparison.rows
    columns = figures.speedup_columns(rows)
    laws = worth_a_line(rows)
    most = max(columns["cores"], default=1)
    highest = max([*columns["high"], 1.0])
    # Unlike the live figure, which has names on hovering too, this one names every strategy.
    labels = [
        told or (f"{name} {speedup:.2f}×" if math.isnan(whole) else "")
        for told, name, speedup, whole in zip(
            *(columns[key] for key in ("text", "label", "speedup", "all_threads")), strict=True
        )
    ]
    widest = max((width_of(label, TEXT_SIZE) for label in labels), default=0.0)
    inner = WIDTH - 2 * MARGIN - LEFT - RIGHT
    keys = [Key(text("legend.ideal"), GREY, dash="dashed")]
    if has_any(columns["all_threads"]):
        keys.append(Key(text("legend.all_threads"), GREY, dash="dotted"))
    for law in laws:
        keys.append(Key(_named(law), look.style({"strategy": law.strategy}).color, dash="dotdash"))
    title = text("figure.speedup.title")
    used = head(canvas, MARGIN, top + MARGIN, WIDTH - 2 * MARGIN, title, keys) + MARGIN
    # On the right there is room for the labels of the points at the most cores.
    x_end = (most + 0.3) * inner / max(1.0, inner - widest - 12)
    place = (MARGIN + LEFT, top + used, inner, PLOT)
    frame = Frame(canvas, *place, (0.0, x_end), (0.0, 1.15 * highest))
    frame.x_axis(text("figure.speedup.x"), whole=True)
    frame.y_axis(text("figure.speedup.y"))
    y_end = frame.y_range[1]
    reach = min(x_end, y_end)
    canvas.line(frame.points([0, reach], [0, reach]), GREY, 2, "dashed")
    for height in columns["all_threads"]:
        if not math.isnan(height):
            canvas.line(frame.points([0, x_end], [height, height]), GREY, 2.4, "dotted")
    for law in laws:
        xs = [1 + n * (x_end - 1) / 60 for n in range(61)]
        drawn = [(x, law.speedup(x)) for x in xs if law.speedup(x) <= y_end]
        if len(drawn) > 1:
            color = look.style({"strategy": law.strategy}).color
            canvas.line(frame.points(*zip(*drawn, strict=True)), color, 1.6, "dotdash")
    taken: dict[int, float] = {}
    order = sorted(range(len(columns["cores"])), key=lambda n: -columns["speedup"][n])
    for n in order:
        cores, color = columns["cores"][n], columns["color"][n]
        low, high = frame.at(cores, columns["low"][n]), frame.at(cores, columns["high"][n])
        canvas.line([low, high], color, 3)
        x, y = frame.at(cores, columns["speedup"][n])
        marker(canvas, columns["marker"][n], x, y, 13, color, columns["fill"][n])
        if label := labels[n]:
            # Labels at one number of cores stand below each other and hide none.
            y = max(y, taken.get(cores, -math.inf) + 16)
            taken[cores] = y
            canvas.text(label, x + 12, y, size=TEXT_SIZE, bold=True, halo=True)
    return used + PLOT + FOOT


def _named(law: Fit) -> str:
    share = f"{100 * law.serial_fraction:.0f}"
    said = text("figure.speedup.law", strategy=law.strategy, share=share)
    return f"{text('legend.law')}: {said}"


def _loss(canvas: Canvas, top: float, comparison: Any) -> float:
    columns = figures.loss_columns(figures.curves_of(comparison))
    return _curves(canvas, top, "loss", columns, "loss", "end_loss")


def _throughput(canvas: Canvas, top: float, comparison: Any) -> float:
    columns = throughput_columns(figures.curves_of(comparison))
    return _curves(canvas, top, "throughput", columns, "rate", "end_rate", from_zero=True)


def _accuracy(canvas: Canvas, top: float, comparison: Any) -> float:
    columns = accuracy_columns(figures.curves_of(comparison))
    return _curves(canvas, top, "accuracy", columns, "batch_accuracy", "accuracy")


def _curves(
    canvas: Canvas,
    top: float,
    figure: str,
    columns: Columns,
    line: str,
    end: str,
    *,
    from_zero: bool = False,
) -> float:
    """Draw a figure against time: of each curve its column ``line``, and a marker at ``end``."""
    keys: dict[str, Key] = {}
    for n, label in enumerate(columns["label"]):
        keys[label] = Key(
            label,
            columns["color"][n],
            dash=columns["dash"][n],
            marker=columns["marker"][n],
            fill=columns["fill"][n],
        )
    title = text(f"figure.{figure}.title")
    used = head(canvas, MARGIN, top + MARGIN, WIDTH - 2 * MARGIN, title, list(keys.values()))
    used += MARGIN
    every = [*(value for curve in columns[line] for value in curve), *columns[end]]
    known = [value for value in every if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    pad = 0.06 * (high - low) or 0.5
    low = 0.0 if from_zero else low - pad
    longest = 1.04 * max(columns["end_s"], default=1.0) or 1.0
    inner = WIDTH - 2 * MARGIN - LEFT - RIGHT
    place = (MARGIN + LEFT, top + used, inner, PLOT)
    frame = Frame(canvas, *place, (0.0, longest), (low, high + pad))
    frame.x_axis(text(f"figure.{figure}.x"))
    frame.y_axis(text(f"figure.{figure}.y"))
    for n, color in enumerate(columns["color"]):
        if len(columns["time_s"][n]) > 1:
            points = frame.points(columns["time_s"][n], columns[line][n])
            canvas.line(points, color, 2.2, columns["dash"][n])
        if math.isfinite(columns[end][n]):
            at = frame.at(columns["end_s"][n], columns[end][n])
            marker(canvas, columns["marker"][n], *at, 11, color, columns["fill"][n])
    return used + PLOT + FOOT


def _share(canvas: Canvas, top: float, comparison: Any) -> float:
    columns = figures.share_columns(comparison.rows)
    title = text("figure.share.title")
    frame, used = _bars(canvas, top, title, columns["label"], max(columns["total"], default=1.0))
    frame.x_axis(text("figure.share.x"))
    for n, label in enumerate(columns["label"]):
        _, y = frame.at(0, len(columns["label"]) - n - 0.5)
        canvas.text(label, frame.x - 7, y, anchor="end", size=TEXT_SIZE)
        begun = 0.0
        for span in look.SPANS:
            _bar(frame, span, begun, begun + columns[span.kind][n], y)
            begun += columns[span.kind][n]
        x, _ = frame.at(columns["total"][n], 0)
        canvas.text(columns["text"][n], x + 7, y, size=TEXT_SIZE, bold=True)
    return used


def _timeline(canvas: Canvas, top: float, comparison: Any) -> float:
    columns = timeline_columns(timeline_of(comparison.timelines))
    ranks = list(dict.fromkeys(columns["label"]))
    title = f"{text('figure.timeline.title')}: {columns['of'][0]}"
    frame, used = _bars(canvas, top, title, ranks, max(columns["stop"], default=1.0))
    frame.x_axis(text("figure.timeline.x"))
    looks = {span.color: span for span in look.SPANS}
    for n, rank in enumerate(columns["label"]):
        _, y = frame.at(0, len(ranks) - ranks.index(rank) - 0.5)
        _bar(frame, looks[columns["color"][n]], columns["start"][n], columns["stop"][n], y)
    for n, rank in enumerate(ranks):
        _, y = frame.at(0, len(ranks) - n - 0.5)
        canvas.text(rank, frame.x - 7, y, anchor="end", size=TEXT_SIZE)
    return used


def _memory(canvas: Canvas, top: float, comparison: Any) -> float:
    columns = memory_columns(_of_ranks(comparison))
    keys = [
        Key(text(f"memory.{kind}"), look.MEMORY[kind], hatch=hatch)
        for kind, hatch in MEMORY.items()
    ]
    title = text("figure.memory.title")
    longest = max([*columns["measured"], *columns["predicted"]], default=1.0)
    frame, used = _bars(canvas, top, title, columns["label"], longest, keys)
    frame.x_axis(text("figure.memory.x"))
    for n, label in enumerate(columns["label"]):
        _, y = frame.at(0, len(columns["label"]) - n - 0.5)
        canvas.text(label, frame.x - 7, y, anchor="end", size=TEXT_SIZE)
        for kind, up in (("measured", -0.2), ("predicted", 0.2)):
            span = look.Span(kind, look.MEMORY[kind], MEMORY[kind])
            _bar(frame, span, 0.0, columns[kind][n], y + up * BAR, height=0.34 * BAR)
    return used


def _of_ranks(comparison: Any) -> list[RankMemory]:
    """Return the memory of the ranks of the timed runs."""
    return memory_of_runs(run for run in comparison.runs if run.work is comparison.work)()


def _bars(
    canvas: Canvas,
    top: float,
    title: str,
    names: Sequence[str],
    longest: float,
    keys: Sequence[Key] = (),
) -> tuple[Frame, float]:
    """Return the frame of a figure with a bar for each name, and how high the figure is.

    The legend's ``keys`` are those of spans if there are none.
    """
    keys = keys or [Key(text(f"span.{s.kind}"), s.color, hatch=s.hatch) for s in look.SPANS]
    used = head(canvas, MARGIN, top + MARGIN, WIDTH - 2 * MARGIN, title, keys) + MARGIN
    left = max((width_of(name, TEXT_SIZE) for name in names), default=0.0) + 12
    inner, height = WIDTH - 2 * MARGIN - left - RIGHT, BAR * max(1, len(names))
    ends = (0.0, 1.12 * longest or 1.0)
    place = (MARGIN + left, top + used, inner, height)
    return Frame(canvas, *place, ends, (0.0, float(max(1, len(names))))), used + height + FOOT


def _bar(
    frame: Frame,
    span: look.Span,
    start: float,
    stop: float,
    y: float,
    height: float = 0.64 * BAR,
) -> None:
    (x, _), (end, _) = frame.at(start, 0), frame.at(stop, 0)
    if end - x >= THINNEST:
        hatched(frame.canvas, x, y - height / 2, end - x, height, span.color, span.hatch)


_FIGURES: dict[str, Callable[[Canvas, float, Any], float]] = {
    "speedup": _speedup,
    "loss": _loss,
    "throughput": _throughput,
    "accuracy": _accuracy,
    "share": _share,
    "timeline": _timeline,
    "memory": _memory,
}
