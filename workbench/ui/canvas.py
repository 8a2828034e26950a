"""What still figures are drawn on: three primitives, and SVG made of them.

Bokeh draws in a browser, and makes SVG or PNG only with one. A still figure is made of polygons,
lines and text alone, so that it can be drawn as SVG here and as pixels in
:mod:`workbench.ui.raster`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

from workbench.ui import look

Points = Sequence[tuple[float, float]]
INK = "#222222"
GREY = "#767676"
PAPER = "#FFFFFF"

DASHES = {
    "solid": (),
    "dashed": (7.0, 4.0),
    "dotted": (2.0, 4.0),
    "dotdash": (2.0, 3.0, 7.0, 3.0),
    "dashdot": (7.0, 3.0, 2.0, 3.0),
}
"""Bokeh's names of dashes, as lengths of lines and gaps in pixels."""


class Canvas(Protocol):
    """A surface of white paper; lengths are pixels from the upper left corner."""

    def polygon(self, points: Points, fill: str | None, stroke: str | None, width: float) -> None:
        """Draw a closed shape."""

    def line(self, points: Points, color: str, width: float, dash: str = "solid") -> None:
        """Draw a line through ``points``."""

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        anchor: str = "start",
        size: float = 13.0,
        bold: bool = False,
        color: str = INK,
        turned: bool = False,
        halo: bool = False,
    ) -> None:
        """Write a line whose middle is at height ``y``; turned by a quarter it reads upwards.

        A halo of paper keeps it readable on lines.
        """


class Svg:
    """A canvas that becomes an SVG image, which stands alone: no style or font is fetched."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def polygon(self, points: Points, fill: str | None, stroke: str | None, width: float) -> None:
        """Draw a closed shape."""
        line = f' stroke="{stroke}" stroke-width="{width:g}"' if stroke else ""
        self._parts.append(f'<polygon points="{_at(points)}" fill="{fill or "none"}"{line}/>')

    def line(self, points: Points, color: str, width: float, dash: str = "solid") -> None:
        """Draw a line through ``points``."""
        dashes = " ".join(f"{length:g}" for length in DASHES[dash])
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._parts.append(
            f'<polyline points="{_at(points)}" fill="none" stroke="{color}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"{dashed}/>'
        )

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        anchor: str = "start",
        size: float = 13.0,
        bold: bool = False,
        color: str = INK,
        turned: bool = False,
        halo: bool = False,
    ) -> None:
        """Write a line whose middle is at height ``y``; turned by a quarter it reads upwards.

        A halo of paper keeps it readable on lines.
        """
        weight = ' font-weight="600"' if bold else ""
        paper = f' stroke="{PAPER}" stroke-width="4" paint-order="stroke"' if halo else ""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" dy="0.35em" text-anchor="{anchor}" '
            f'font-size="{size:g}" fill="{color}"{paper}{weight}{turn}>{escape(text)}</text>'
        )

    def document(self) -> str:
        """Return the image."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{self.width:g}" '
            f'height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'font-family="{escape(look.FONT)}"><title>{escape(self.title)}</title>'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(self._parts)}</svg>\n'
        )


def rectangle(x: float, y: float, width: float, height: float) -> Points:
    """Return the corners of a rectangle."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def hatched(
    canvas: Canvas, x: float, y: float, width: float, height: float, color: str, hatch: str
) -> None:
    """Draw a filled rectangle with one of Bokeh's hatches: ``/``, ``x``, ``-``, ``.`` or blank."""
    canvas.polygon(rectangle(x, y, width, height), color, None, 0)
    step = 7.0
    if hatch == "-":
        for n in range(1, math.ceil(height / step)):
            canvas.line([(x, y + n * step), (x + width, y + n * step)], PAPER, 1.2)
    if hatch in ("/", "x"):
        # Lines x + y = c, and their mirror images; each from where it enters to where it leaves.
        for n in range(1, math.ceil((width + height) / step)):
            c = n * step
            low, high = max(0.0, c - width), min(height, c)
            canvas.line([(x + c - low, y + low), (x + c - high, y + high)], PAPER, 1.2)
            if hatch == "x":
                mirrored = [(x + width - c + low, y + low), (x + width - c + high, y + high)]
                canvas.line(mirrored, PAPER, 1.2)
    if hatch == ".":
        for row in range(math.floor(height / step)):
            for column in range(math.floor(width / step)):
                dot = rectangle(x + (column + 0.5) * step - 1, y + (row + 0.5) * step - 1, 2, 2)
                canvas.polygon(dot, PAPER, None, 0)


def marker(
    canvas: Canvas, kind: str, x: float, y: float, size: float, color: str, fill: float
) -> None:
    """Draw one of Bokeh's markers, ``size`` pixels wide; ``fill`` from 0, hollow, to 1."""
    half = size / 2
    shape, sign = (kind, "") if kind in _SHAPES else kind.rpartition("_")[::2]
    if shape:
        points = [(x + half * dx, y + half * dy) for dx, dy in _SHAPES[shape]]
        canvas.polygon(points, _mixed(color, fill), color, 2)
    if sign == "dot":
        dot = [(x + half * dx / 3, y + half * dy / 3) for dx, dy in _SHAPES["circle"]]
        canvas.polygon(dot, color, None, 0)
    for dx, dy in _ARMS.get(sign, ()):
        canvas.line([(x, y), (x + half * dx, y + half * dy)], color, 2 if shape else 3)


def _mixed(color: str, share: float) -> str:
    """Return so much of a colour on paper."""
    parts = zip(*(bytes.fromhex(each[1:]) for each in (color, PAPER)), strict=True)
    mixed = bytes(round(share * own + (1 - share) * paper) for own, paper in parts)
    return f"#{mixed.hex().upper()}"


def width_of(text: str, size: float) -> float:
    """Return about how wide ``text`` is: letters are half as wide as high, Chinese signs square."""
    return sum(1.0 if ord(sign) > 0x2E80 else 0.53 for sign in text) * size


def _at(points: Points) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _around(corners: int, first: float, radii: Sequence[float] = (1.0,)) -> Points:
    """Return points around the middle, the first at ``first`` parts of a turn from the right."""
    return [
        (
            radii[n % len(radii)] * math.cos(2 * math.pi * (first + n / corners)),
            radii[n % len(radii)] * math.sin(2 * math.pi * (first + n / corners)),
        )
        for n in range(corners)
    ]


_SHAPES: dict[str, Points] = {
    "circle": _around(24, 0.0),
    "square": _around(4, 0.125, (1.2,)),
    "diamond": _around(4, 0.0, (1.25,)),
    "triangle": _around(3, 0.75, (1.2,)),
    "inverted_triangle": _around(3, 0.25, (1.2,)),
    "hex": _around(6, 0.0, (1.1,)),
    "star": _around(10, 0.75, (1.3, 0.55)),
    "square_pin": _around(8, 0.125, (1.3, 0.6)),
    "triangle_pin": _around(6, 0.75, (1.3, 0.35)),
}

_ARMS: dict[str, Points] = {
    "cross": _around(4, 0.0),
    "x": _around(4, 0.125),
    "y": _around(3, 0.25),
    "asterisk": _around(8, 0.0),
}
"""Ends of the lines from the middle of markers that are no shape, or stand within one."""
