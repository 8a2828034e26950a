"""Still figures as pixels, by Pillow, which the workbench needs for its photographs anyway."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from workbench.ui.canvas import DASHES, INK, PAPER, Points

SHARP = 2
"""Pixels of the image per pixel of the canvas: sharp on a projector, and in print."""

FINE = 2
"""Drawn so many times larger and made smaller at the end, which smoothes edges."""

FONTS = {
    False: ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf"),
    True: ("NotoSansCJK-Bold.ttc", "DejaVuSans-Bold.ttf"),
}
"""Fonts of the system by boldness; the first one has Chinese signs. Pillow brings another along."""


class Raster:
    """A canvas that becomes a PNG image."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.title = title
        self._scale = SHARP * FINE
        size = (round(width * self._scale), round(height * self._scale))
        self._image = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Points, fill: str | None, stroke: str | None, width: float) -> None:
        """Draw a closed shape."""
        self._draw.polygon(self._at(points), fill=fill)
        if stroke:
            self.line([*points, points[0], points[1]], stroke, width)

    def line(self, points: Points, color: str, width: float, dash: str = "solid") -> None:
        """Draw a line through ``points``."""
        for piece in _dashed(points, DASHES[dash]) if DASHES[dash] else [points]:
            thick = max(1, round(width * self._scale))
            self._draw.line(self._at(piece), fill=color, width=thick, joint="curve")

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
        font = _font(round(size * self._scale), bold)
        if not turned:
            at = {"start": "lm", "middle": "mm", "end": "rm"}[anchor]
            (place,) = self._at([(x, y)])
            edge = 2 * self._scale if halo else 0
            self._draw.text(
                place, text, fill=color, font=font, anchor=at, stroke_width=edge, stroke_fill=PAPER
            )
            return
        left, top, right, bottom = (math.ceil(edge) for edge in font.getbbox(text, anchor="lm"))
        slip = Image.new("L", (right - left, bottom - top), 0)
        ImageDraw.Draw(slip).text((-left, -top), text, fill=255, font=font, anchor="lm")
        slip = slip.rotate(90, expand=True)
        ((column, row),) = self._at([(x, y)])
        part = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        corner = (round(column - slip.width / 2), round(row - slip.height * part))
        self._image.paste(Image.new("RGB", slip.size, color), corner, slip)

    def png(self) -> bytes:
        """Return the image as the content of a PNG file."""
        small = self._image.resize(
            (self._image.width // FINE, self._image.height // FINE), Image.Resampling.LANCZOS
        )
        file = BytesIO()
        small.save(file, "PNG", dpi=(96 * SHARP, 96 * SHARP), optimize=True)
        return file.getvalue()

    def _at(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self._scale, y * self._scale) for x, y in points]


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS[bold]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _dashed(points: Points, lengths: tuple[float, ...]) -> Iterator[Points]:
    """Yield the pieces of a line that are drawn; ``lengths`` of lines and gaps take turns."""
    number, left = 0, lengths[0]
    for (x, y), (to_x, to_y) in pairwise(points):
        whole = math.hypot(to_x - x, to_y - y)
        done = 0.0
        while done < whole:
            end = min(whole, done + left)
            if number % 2 == 0:
                parts = (done / whole, end / whole)
                yield [(x + part * (to_x - x), y + part * (to_y - y)) for part in parts]
            left -= end - done
            done = end
            if left <= 1e-9:
                number += 1
                left = lengths[number % len(lengths)]
