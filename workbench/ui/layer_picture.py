"""The plan's view of one layer: who owns which rows, which rows are fetched of whom, in bytes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from math import prod

from workbench.distribution import Distribution
from workbench.errors import PlanError
from workbench.plan import LayerPlan, Plan, in_binary_units
from workbench.strategies.wording import WORDS
from workbench.ui.drawing import HATCH, RANKS, WIDTH, Picture, rect, svg, text, texts, words
from workbench.ui.language import text as words_of
from workbench.ui.language import translate
from workbench.ui.linking import marks
from workbench.ui.placement_picture import placement_picture
from workbench.windows import Halo, Run, Window, cells

SIDE, THINNEST = 190, 7
"""Pixels: of the longer side of one image, and of the thinnest halo drawn."""


def picture(
    plan: Plan | Distribution, layer: str | None = None, *, after: Distribution | None = None
) -> Picture:
    """Draw one layer of a plan: shares in the colours of their ranks, fetched rows hatched.

    Or draw a table of :func:`workbench.placement`: the chunks of every worker.

    Parameters
    ----------
    layer:
        Its name, as in the printed plan; the first one with a halo if left out.
    after:
        The table when workers have come or gone: what has moved is hatched.

    Raises
    ------
    PlanError
        If the plan has no such layer; names the nearest.
    """
    if isinstance(plan, Distribution):
        return placement_picture(plan, after)
    planned = _chosen(plan, layer)
    halo = planned.halo(plan.mesh) if planned.layer.windows and planned.choice != "gather" else None
    title = _title(planned)
    if halo is None or plan.ranks == 1:
        lines = _without_halo(plan, planned)
        whole = svg(54 + 22 * len(lines), title, texts(lines, 54), marks(layer=planned.layer.name))
        return Picture(whole, words(title, lines))
    lines = [*_sentences(plan, planned, halo), words_of("picture.hatched")]
    frame = _Frame(planned, halo)
    per_row = max(1, int((WIDTH + 4) // (frame.width + 28)))
    body, y = [], 60.0
    shown = range(halo.size)
    for start in range(0, halo.size, per_row):
        for place, index in enumerate(shown[start : start + per_row]):
            drawn = frame.drawn(index, 14 + place * (frame.width + 28), y)
            of = [r for r in range(plan.ranks) if plan.mesh.coordinates(r)["spatial"] == index]
            named = words_of("timeline.rank", rank=index)
            mine = f'{marks(of, stop=True)} role="img" aria-label="{named}" pointer-events="all"'
            body.append(f"<g{mine}>{drawn}</g>")
        y += frame.height + 48
    body.append(texts(lines, y + 8))
    of_layer = marks(layer=planned.layer.name)
    whole = svg(y + 22 * len(lines) + 8, title, "".join(body), of_layer)
    return Picture(whole, words(title, lines))


def first_layer(plan: Plan) -> str:
    """Return the name of the layer that is drawn if none is named.

    Raises
    ------
    PlanError
        If the plan has no layer.
    """
    return _chosen(plan, None).layer.name


def _chosen(plan: Plan, name: str | None) -> LayerPlan:
    layers = [planned for planned in plan.layers if planned.layer.arguments]
    if not layers:
        raise PlanError("The plan has no layer to draw.")
    if name is None:
        return next((p for p in layers if p.layer.windows and p.halo(plan.mesh)), layers[0])
    for planned in layers:
        if planned.layer.name == name:
            return planned
    names = [planned.layer.name for planned in layers]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3) or names[:1]
    raise PlanError(f"The plan has no layer {name!r}; the nearest is {near[0]!r}.")


def _title(planned: LayerPlan) -> str:
    layer = planned.layer
    shape = "×".join(map(str, layer.input_shape))
    out = "×".join(map(str, layer.output_shape))
    return words_of("picture.title", name=layer.name, kind=layer.kind, shape=shape, out=out)


def _without_halo(plan: Plan, planned: LayerPlan) -> list[str]:
    """Say what a layer does that fetches nothing."""
    own = [c for c in plan.collectives if c.name.startswith(f"{planned.layer.name}: ")]
    sent = sum(plan.sent_by(c, 0) for c in own)
    ways = {way: said for (role, way), said in WORDS.items() if role == planned.layer.role}
    if planned.choice == "gather":
        line = words_of("picture.gather")
    elif planned.choice in ways:
        line = words_of("picture.split", way=translate(ways[planned.choice]))
    elif own:
        line = words_of("picture.adds")
    else:
        line = words_of("picture.alone" if planned.input else "picture.whole")
    return [line, words_of("picture.sends", bytes=in_binary_units(sent))] if own else [line]


def _sentences(plan: Plan, planned: LayerPlan, halo: Halo) -> Iterator[str]:
    array = planned.layer.arguments[0]
    samples = sum(plan.batch.rows(plan.mesh.replicas, 0))
    per_sample = array.numel // plan.batch.size // prod(window.size for window in halo.windows)
    rest = samples * per_sample * array.itemsize
    for index in range(halo.size):
        rows = (f"{a}-{b - 1}" if b > a else words_of("picture.none") for a, b in halo.owned(index))
        fetched = [
            words_of(
                "picture.of", bytes=in_binary_units(halo.rows_sent(owner, index) * rest), rank=owner
            )
            for owner in halo.owners(index)
        ]
        got = words_of("picture.nothing")
        if fetched:
            got = words_of("picture.fetches", what=", ".join(fetched))
        yield words_of("picture.owns", rank=index, own=" × ".join(rows), got=got)
    window = next((w for w in halo.windows if w.span > 1 or w.stride > 1), halo.windows[0])
    key = "picture.both_ways" if array.gradient else "picture.forward"
    yield words_of(key, window=_in_words(window))


def _in_words(window: Window) -> str:
    if window.table:
        return words_of("picture.several")
    sizes = {"rows": window.span, "stride": window.stride, "padding": window.padding}
    said = words_of("picture.window", **sizes)
    if window.transposed:
        said = words_of("picture.transposed", window=said)
    return said if window.mode == "zeros" else f"{said} ({window.mode})"


class _Frame:
    """The image of a layer's input, to scale, with two of its dims drawn."""

    def __init__(self, planned: LayerPlan, halo: Halo) -> None:
        shape = planned.layer.input_shape
        cut = sorted((c for c in planned.input if c.axis == "spatial"), key=lambda c: c.part)
        dims = [c.dim for c in cut]
        others = [d for d in range(len(shape) - 1, 1, -1) if d not in dims]
        down, across = (dims[0], others[0] if others else None)
        if len(dims) > 1:
            down, across = dims[0], dims[1]
        elif across is not None and across < down:
            down, across = across, down
        self.halo, self.dims, self.down, self.across = halo, dims, down, across
        self.rows = shape[down]
        self.columns = shape[across] if across is not None else max(1, shape[down] // 3)
        scale = SIDE / max(self.rows, self.columns)
        self.width, self.height = max(60.0, self.columns * scale), max(60.0, self.rows * scale)

    def drawn(self, index: int, x: float, y: float) -> str:
        """Return what rank ``index`` owns, solid, and fetches, hatched, over the whole image."""
        parts = [rect(x, y, self.width, self.height, "none", stroke="#8C8C8C", dash="4 3")]
        for box in cells(self.halo.message(index, index)):
            parts.append(self._box(box, x, y, RANKS[index % len(RANKS)]))
        for owner in self.halo.owners(index):
            for box in cells(self.halo.message(owner, index)):
                fill = f"url(#{HATCH}{owner % len(RANKS)})"
                parts.append(self._box(box, x, y, fill, RANKS[owner % len(RANKS)]))
        parts.append(text(words_of("timeline.rank", rank=index), x, y - 8, bold=True))
        return "".join(parts)

    def _box(
        self, box: tuple[Run, ...], x: float, y: float, fill: str, stroke: str | None = None
    ) -> str:
        place = dict(zip(self.dims, box, strict=True))
        top, bottom = place.get(self.down, (0, self.rows))
        left, right = place.get(self.across or -1, (0, self.columns))
        tall, wide = self.height / self.rows, self.width / self.columns
        height, width = (bottom - top) * tall, (right - left) * wide
        least = THINNEST if stroke else 1.0
        py, px = y + top * tall, x + left * wide
        if height < least:
            py, height = py - (least - height) * (top > 0), least
        if width < least:
            px, width = px - (least - width) * (left > 0), least
        return rect(px, py, width, height, fill, stroke=stroke)
