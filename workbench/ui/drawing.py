"""What pictures are drawn with: colours, hatches, rectangles, lines of text, as SVG."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from itertools import count

from workbench.ui import look
from workbench.ui.canvas import width_of

RANKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#3D8FC4", "#767676", "#8C564B")
"""Colours of ranks, each with a contrast of 3:1 on white and on dark: Okabe and Ito's, their orange
and sky blue darker. Each share is labelled too, so no meaning hangs on colour."""

WIDTH = 900
"""Pixels of a picture."""

TEXT = 15
"""Pixels of its text."""


HATCH = "wb-hatch-"
"""Before the number of a colour: the name of its hatch within one picture."""

_pictures = count()


@dataclass(frozen=True)
class Picture:
    """A picture that notebooks show by itself; ``text`` says the same in words."""

    svg: str
    text: str

    def _repr_html_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        """Return the words."""
        return self.text


def svg(height: float, title: str, body: str, marks: str = "", said: str = "") -> str:
    """Return a picture of ``WIDTH`` pixels with a title; ``url(#wb-hatch-N)`` hatches in colour N.

    The hatches of each picture get names of their own: those of another one on the page, which has
    the same names and is hidden, would be taken and not be seen. ``marks`` are attributes of its
    own, see :func:`workbench.ui.linking.marks`. ``said`` is the picture in words, for those who do
    not see it.
    """
    own = f"{HATCH}{next(_pictures)}-"
    body = body.replace(f"url(#{HATCH}", f"url(#{own}")
    hatches = "".join(
        f'<pattern id="{own}{n}" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="6" height="6" fill="#fff"/>'
        f'<line x1="0" y1="0" x2="0" y2="6" stroke="{color}" stroke-width="5"/></pattern>'
        for n, color in enumerate(RANKS)
    )
    role = "group" if " tabindex=" in body else "img"  # nothing inside of an image has the focus
    told = f"<desc>{escape(said)}</desc>" if said else ""
    return (
        f'<svg class="wb-layer"{marks} role="{role}" aria-label="{escape(title)}" width="100%" '
        f'style="max-width:{WIDTH}px" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="{escape(look.FONT)}" fill="currentColor">{told}<defs>{hatches}</defs>'
        f"{text(title, 12, 24, bold=True, size=18)}{body}</svg>"
    )


def document(drawn: str) -> str:
    """Return a picture as a file of its own, dark on white."""
    space = 'xmlns="http://www.w3.org/2000/svg"'
    return drawn.replace("<svg ", f'<svg {space} color="#222" ', 1).replace(
        "max-width:", "background:#fff;max-width:", 1
    )


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    fill: str,
    *,
    stroke: str | None,
    dash: str = "",
    line_width: float = 1.5,
) -> str:
    """Return a rectangle."""
    line = f' stroke="{stroke}" stroke-width="{line_width}"' if stroke else ""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{fill}"{line}{dashes}/>'
    )


def text(text: str, x: float, y: float, *, bold: bool = False, size: int = TEXT) -> str:
    """Return one line of text, its foot at ``y``."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{weight}>{escape(text)}</text>'


def texts(lines: list[str], y: float) -> str:
    """Return lines of text, one below the other."""
    return "".join(text(line, 12, y + 22 * n) for n, line in enumerate(lines))


def wrapped(line: str, width: float) -> list[str]:
    """Return a line of text in pieces of at most about ``width`` pixels; Chinese has no spaces."""
    found = [""]
    for piece in _PIECES.findall(line):
        if found[-1] and width_of(f"{found[-1]}{piece}".rstrip(), TEXT) > width:
            found.append("")
        found[-1] += piece
    return [each.rstrip() for each in found]


_PIECES = re.compile(r"[\u2e80-\uffff][，。；：、）]* *|[^ \u2e80-\uffff]+[，。；：、）]* *| +")
"""What a line may be broken after: a word, or a Chinese sign with the stop that follows."""


def words(title: str, lines: list[str]) -> str:
    """Return what a picture says, for those who do not see it."""
    return "\n".join([title, *(f"  {line}" for line in lines)])
