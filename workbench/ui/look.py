"""How things look, by meaning: the same colour, marker, dash and hatch in every figure.

Colours are Okabe and Ito's, which colour-blind people tell apart; each is doubled by a marker and a
dash (strategies) or a hatch (spans), so that no meaning hangs on colour alone. All reach a contrast
of 3:1 on white and on JupyterLab's dark background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from workbench.mesh import AXES
from workbench.ui.texts import Row

INK = "#767676"
"""Text and axes where the theme's own colour is not known: 4.5:1 on white, 4.1:1 on JupyterLab's
dark background. No colour has more than 4.4:1 on both, so text takes the theme's."""

FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', "
    "'PingFang SC', 'Microsoft YaHei', sans-serif"
)
TITLE_SIZE = "15px"
TEXT_SIZE = "14px"


@dataclass(frozen=True)
class Style:
    """How one kind of strategy is drawn: Bokeh's names for marker and dash.

    ``fill`` is how much of its colour the marker is filled with, from 0 to 1.
    """

    color: str
    marker: str
    dash: str
    fill: float = 1.0


SERIAL = Style("#767676", "circle", "solid")
SERIAL_ALL_THREADS = Style("#767676", "circle", "dotted", 0.0)
HYBRID = Style("#D55E00", "cross", "dashdot", 0.25)
OF_AXIS = {
    "data": Style("#0072B2", "square", "solid"),
    "sharded": Style("#0072B2", "inverted_triangle", "dashed"),
    "pipeline": Style("#009E73", "triangle", "solid"),
    "tensor": Style("#009E73", "hex", "dashed"),
    "spatial": Style("#CC79A7", "diamond", "solid"),
    "channel": Style("#CC79A7", "star", "dashed"),
}
"""Replicas are blue, cuts of the model green, of an operator purple, products of axes orange.

That is how they look at degree 2; at other degrees, dash and filling are others.
"""

OF_PAIR = {
    ("data", "sharded"): "square_pin",
    ("data", "pipeline"): "square_x",
    ("data", "tensor"): "square_cross",
    ("data", "channel"): "diamond_cross",
    ("data", "spatial"): "square_dot",
    ("sharded", "pipeline"): "circle_x",
    ("sharded", "tensor"): "circle_cross",
    ("sharded", "channel"): "circle_y",
    ("sharded", "spatial"): "circle_dot",
    ("pipeline", "tensor"): "triangle_pin",
    ("pipeline", "channel"): "y",
    ("pipeline", "spatial"): "triangle_dot",
    ("tensor", "channel"): "asterisk",
    ("tensor", "spatial"): "hex_dot",
    ("channel", "spatial"): "star_dot",
}
"""Markers of products, by their first two axes; no single axis has any of them."""

OF_GREATER = {
    (False, False): "dashdot",
    (True, False): "dotdash",
    (False, True): "dotted",
    (True, True): "dashed",
}
"""Dash of a product of two axes, by which of its degrees are greater than 2."""

OF_MORE = ("solid", 0.0)
"""Dash and filling of a product of three axes or more."""

OF_DEGREE = {3: ("dotdash", 0.5), 4: ("dotted", 0.0)}
HIGHER = ("dashdot", 0.5)
"""Dash and filling by the degree of one axis, and of all degrees that are not listed."""


@dataclass(frozen=True)
class Span:
    """How one kind of span is drawn; ``hatch`` is a Bokeh pattern, blank for none."""

    kind: str
    color: str
    hatch: str


SPANS = (
    Span("compute", "#0072B2", " "),
    Span("comm", "#D55E00", "/"),
    Span("wait", "#8C8C8C", "."),
    Span("optimizer", "#009E73", "x"),
    Span("other", "#CC79A7", "-"),
)
"""The pieces of a step, in the order in which they are stacked."""


MEMORY = {"measured": "#0072B2", "predicted": "#8C8C8C"}
"""Bars of memory; what is predicted is hatched too."""


def style(row: Row) -> Style:
    """Return how a row of a comparison is drawn."""
    if row["strategy"] == "serial":
        return SERIAL if row["threads"] == 1 else SERIAL_ALL_THREADS
    degrees = dict(part.partition("=")[::2] for part in row["strategy"].split(","))
    if len(degrees) > 1:
        return _of_product(degrees)
    [(axis, degree)] = degrees.items()
    found = OF_AXIS.get(axis, HYBRID)
    if degree in ("", "2"):  # a law is that of all degrees
        return found
    dash, fill = OF_DEGREE.get(int(degree), HIGHER) if degree.isdecimal() else HIGHER
    return replace(found, dash=dash, fill=fill)


def _of_product(degrees: Mapping[str, str]) -> Style:
    """Return how a product of axes is drawn, by what it is and not by where it stands."""
    known = [axis for axis in AXES if axis in degrees]
    if len(known) < len(degrees):  # with an axis of somebody's own
        return HYBRID
    marker = OF_PAIR[known[0], known[1]]
    if len(known) > 2:
        dash, fill = OF_MORE
        return replace(HYBRID, marker=marker, dash=dash, fill=fill)
    first, second = (degrees[axis] not in ("", "2") for axis in known)
    return replace(HYBRID, marker=marker, dash=OF_GREATER[first, second])


CROSS = "✗"
"""Marks what cannot be."""
