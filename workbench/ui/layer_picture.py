"""The plan's view of one layer: who holds which part, what is fetched of whom, what travels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from html import escape

from workbench.distribution import Distribution
from workbench.errors import PlanError
from workbench.plan import LayerPlan, Plan
from workbench.ui.drawing import (
    HATCH,
    RANKS,
    WIDTH,
    Picture,
    rect,
    svg,
    text,
    texts,
    words,
    wrapped,
)
from workbench.ui.language import text as words_of
from workbench.ui.layer_arrays import DRAWN, arrays_of, ranks_of
from workbench.ui.layer_panels import legend, named, panels, told
from workbench.ui.layer_words import halo_sentences, sentences
from workbench.ui.linking import marks
from workbench.ui.placement_picture import placement_picture
from workbench.windows import Halo, Run, cells

SIDE, THINNEST = 190, 7
"""Pixels: of the longer side of one image, and of the thinnest halo drawn."""


def picture(
    plan: Plan | Distribution, layer: str | None = None, *, after: Distribution | None = None
) -> Picture:
    """Draw the cut of one layer: which rank holds which part of the batch, its weight, its maps.

    Every part is to scale, in the colour of its rank and with its number; what several ranks hold
    has the colours of all. Where windows reach into other ranks' shares, what each rank fetches is
    hatched in the colour of the rank that it is of.

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
    number = number_of(plan, layer)
    planned = plan.layers[number]
    title = _title(planned)
    arrays = arrays_of(plan, number)
    body = [legend(plan.ranks, 52)]
    drawn, y = panels([array for array in arrays if array.kind in DRAWN], 84)
    body.append(drawn)
    lines = sentences(plan, number)
    if halo := _halo(plan, planned):
        body.append(text(words_of("picture.hatched"), 12, y + 14, bold=True))
        frames, y = _frames(plan, number, halo, y + 46)
        body.append(frames)
        lines = [*halo_sentences(plan, number, halo), *lines]
    shown = [piece for line in lines for piece in wrapped(line, WIDTH - 24)]
    body.append(texts(shown, y + 16))
    said = [told(array, part) for array in arrays if array.kind in DRAWN for part in array.parts]
    every = words(title, [*said, *lines])
    of_layer = marks(layer=planned.layer.name)
    whole = svg(y + 22 * len(shown) + 12, title, "".join(body), of_layer, every)
    return Picture(whole, every)


def first_layer(plan: Plan) -> str:
    """Return the name of the layer that is drawn if none is named.

    Raises
    ------
    PlanError
        If the plan has no layer.
    """
    return plan.layers[number_of(plan, None)].layer.name


def number_of(plan: Plan, name: str | None) -> int:
    """Return the number in the plan of the first call of a layer.

    Without a name it is the first one with a halo, else the first whose parameters are cut.

    Raises
    ------
    PlanError
        If the plan has no such layer; names the nearest.
    """
    layers = {n: planned for n, planned in enumerate(plan.layers) if planned.layer.arguments}
    if not layers:
        raise PlanError("The plan has no layer to draw.")
    if name is None:
        halos = (n for n, planned in layers.items() if _halo(plan, planned))
        cut = (n for n, planned in layers.items() if planned.parameters)
        weights = (n for n, planned in layers.items() if planned.layer.parameters)
        return next(n for ways in (halos, cut, weights, layers) for n in ways)
    for number, planned in layers.items():
        if planned.layer.name == name:
            return number
    names = [planned.layer.name for planned in layers.values()]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3) or names[:1]
    raise PlanError(f"The plan has no layer {name!r}; the nearest is {near[0]!r}.")


def _halo(plan: Plan, planned: LayerPlan) -> Halo | None:
    """Return who fetches what of whom for a layer; None if nobody does."""
    if not planned.layer.windows or planned.choice == "gather":
        return None
    halo = planned.halo(plan.mesh)
    fetched = halo is not None and any(halo.received(index) for index in range(halo.size))
    return halo if fetched else None


def _title(planned: LayerPlan) -> str:
    layer = planned.layer
    shape = "×".join(map(str, layer.input_shape))
    out = "×".join(map(str, layer.output_shape))
    return words_of("picture.title", name=layer.name, kind=layer.kind, shape=shape, out=out)


def _frames(plan: Plan, number: int, halo: Halo, y: float) -> tuple[str, float]:
    """Return what the ranks at each place along the spatial axis work with, and where that ends."""
    frame = _Frame(plan, number, halo)
    per_row = max(1, int((WIDTH + 4) // (frame.width + 28)))
    body = []
    for start in range(0, halo.size, per_row):
        for place, index in enumerate(range(halo.size)[start : start + per_row]):
            drawn = frame.drawn(index, 14 + place * (frame.width + 28), y)
            of = frame.ranks[index]
            mine = f'{marks(of, stop=True)} role="img" aria-label="{escape(named(of))}"'
            body.append(f'<g{mine} class="wb-halo" pointer-events="all">{drawn}</g>')
        y += frame.height + 44
    return "".join(body), y - 22


class _Frame:
    """The image of a layer's input, to scale, with two of its dims drawn."""

    def __init__(self, plan: Plan, number: int, halo: Halo) -> None:
        planned = plan.layers[number]
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
        self.ranks: list[Sequence[int]] = [
            [r for r in ranks_of(plan, number) if plan.mesh.coordinates(r)["spatial"] == index]
            for index in range(halo.size)
        ]
        self.rows = shape[down]
        self.columns = shape[across] if across is not None else max(1, shape[down] // 3)
        scale = SIDE / max(self.rows, self.columns)
        self.width, self.height = max(60.0, self.columns * scale), max(60.0, self.rows * scale)

    def drawn(self, index: int, x: float, y: float) -> str:
        """Return what rank ``index`` owns, solid, and fetches, hatched, over the whole image."""
        parts = [rect(x, y, self.width, self.height, "none", stroke="#8C8C8C", dash="4 3")]
        for box in cells(self.halo.message(index, index)):
            parts.append(self._box(box, x, y, self._color(index)))
        for owner in self.halo.owners(index):
            for box in cells(self.halo.message(owner, index)):
                number = self.ranks[owner][0] % len(RANKS)
                parts.append(self._box(box, x, y, f"url(#{HATCH}{number})", RANKS[number]))
        parts.append(text(named(self.ranks[index]), x, y - 8, bold=True))
        return "".join(parts)

    def _color(self, index: int) -> str:
        return RANKS[self.ranks[index][0] % len(RANKS)]

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
