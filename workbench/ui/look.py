"""How things look, by meaning: the same colour, marker, dash and hatch in every figure.

Colours are Okabe and Ito's, which colour-blind people tell apart; each is doubled by a marker and a
dash (strategies) or a hatch (spans), so that no meaning hangs on colour alone. All reach a contrast
of 3:1 on white and on JupyterLab's dark background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.ui.texts import Row

INK = "#767676"
"""Text and axes where the theme's own colour is not known: 4.5:1 on white, 4.1:1 on JupyterLab's
dark background. No colour has more than 4.4:1 on both."""

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
HYBRID = Style("#D55E00", "cross", "dashdot")
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
    axes = [part.partition("=")[0] for part in row["strategy"].split(",")]
    if len(axes) > 1 or axes[0] not in OF_AXIS:
        return HYBRID
    found, degree = OF_AXIS[axes[0]], row["strategy"].partition("=")[2]
    if degree in ("", "2"):  # a law is that of all degrees
        return found
    dash, fill = OF_DEGREE.get(int(degree), HIGHER) if degree.isdecimal() else HIGHER
    return replace(found, dash=dash, fill=fill)


CROSS = "✗"
"""Marks what cannot be."""
