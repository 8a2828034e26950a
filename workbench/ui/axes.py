"""The frame of a still figure: title, legend, axes with round numbers, and where data goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.ui.canvas import INK, Canvas, Points, hatched, marker, rectangle, width_of

GRID = "#DDDDDD"
TITLE_SIZE, TEXT_SIZE = 16.0, 13.0
LEGEND_LINE = 22.0


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a line with a dash, a marker, or a hatched field."""

    label: str
    color: str
    dash: str = ""
    marker: str = ""
    fill: float = 1.0
    hatch: str | None = None


@dataclass(frozen=True)
class Frame:
    """A figure's place on the canvas, and the values at the edges of its data, in pixels.

    ``left`` of the data is room for labels of the y axis.
    """

    canvas: Canvas
    x: float
    y: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where values are drawn; y grows upwards."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return (
            self.x + self.width * (x - x0) / (x1 - x0),
            self.y + self.height * (1 - (y - y0) / (y1 - y0)),
        )

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> Points:
        """Return where a curve is drawn."""
        return [self.at(x, y) for x, y in zip(xs, ys, strict=True)]

    def x_axis(self, label: str, whole: bool = False) -> None:
        """Draw the axis below the data, with a grid."""
        foot = self.y + self.height
        for value in ticks(*self.x_range, whole=whole):
            x, _ = self.at(value, self.y_range[0])
            self.canvas.line([(x, self.y), (x, foot)], GRID, 1)
            self.canvas.text(f"{value:g}", x, foot + 13, anchor="middle", size=TEXT_SIZE)
        self.canvas.line([(self.x, foot), (self.x + self.width, foot)], INK, 1)
        self.canvas.text(label, self.x + self.width / 2, foot + 34, anchor="middle", size=TEXT_SIZE)

    def y_axis(self, label: str, far: float = 46.0) -> None:
        """Draw the axis left of the data, with a grid; its label is ``far`` pixels away."""
        for value in ticks(*self.y_range):
            _, y = self.at(self.x_range[0], value)
            self.canvas.line([(self.x, y), (self.x + self.width, y)], GRID, 1)
            self.canvas.text(f"{value:g}", self.x - 7, y, anchor="end", size=TEXT_SIZE)
        self.canvas.line([(self.x, self.y), (self.x, self.y + self.height)], INK, 1)
        middle = self.y + self.height / 2
        self.canvas.text(label, self.x - far, middle, anchor="middle", size=TEXT_SIZE, turned=True)


def head(
    canvas: Canvas, x: float, y: float, width: float, title: str, keys: Sequence[Key]
) -> float:
    """Write title and legend; return the height that they take."""
    canvas.text(title, x, y + 14, size=TITLE_SIZE, bold=True)
    place, line = x, y + 30.0 + LEGEND_LINE / 2
    for key in keys:
        takes = 34 + width_of(key.label, TEXT_SIZE) + 18
        if place > x and place + takes > x + width:
            place, line = x, line + LEGEND_LINE
        _show(canvas, key, place, line)
        canvas.text(key.label, place + 34, line, size=TEXT_SIZE)
        place += takes
    return line + LEGEND_LINE / 2 + 6 - y if keys else 34.0


def ticks(low: float, high: float, most: int = 8, whole: bool = False) -> list[float]:
    """Return round numbers from ``low`` to ``high``: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _show(canvas: Canvas, key: Key, x: float, y: float) -> None:
    if key.hatch is not None:
        hatched(canvas, x, y - 7, 28, 14, key.color, key.hatch)
        canvas.line([*rectangle(x, y - 7, 28, 14), (x, y - 7)], INK, 0.7)
    if key.dash:
        canvas.line([(x, y), (x + 28, y)], key.color, 2.2, key.dash)
    if key.marker:
        marker(canvas, key.marker, x + 14, y, 11, key.color, key.fill)
