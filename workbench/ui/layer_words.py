"""What a plan does with one layer, in sentences: who computes it, how it is cut, what travels."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.mesh import BATCH_AXES
from workbench.plan import LayerPlan, Plan, in_binary_units
from workbench.strategies.pipeline import stage_of
from workbench.strategies.wording import WORDS
from workbench.ui.collective_names import between_stages, travels_of
from workbench.ui.language import text, translate
from workbench.ui.layer_arrays import ranks_of
from workbench.ui.layer_panels import named, numbered
from workbench.windows import Halo, Window


def sentences(plan: Plan, number: int) -> list[str]:
    """Return what is done with the call of a layer with that number in the plan, halos aside."""
    return [*_held(plan, number), *_travels(plan, number)]


def _held(plan: Plan, number: int) -> Iterator[str]:
    planned = plan.layers[number]
    layer = planned.layer
    stage = stage_of(plan, number)
    if stage is not None:
        values = {"stage": stage, "stages": len(plan.stages)}
        yield text("picture.stage", **values, ranks=named(ranks_of(plan, number)))
    ways = {way: said for (role, way), said in WORDS.items() if role == layer.role}
    cuts = (*planned.input, *planned.output, *(cut for _, cut in planned.parameters))
    apart = [cut for cut in cuts if plan.mesh.parts(cut.axis, cut.part) > 1]
    names = {array.name for array in (*layer.parameters, *layer.tied)}
    updated = names & {name for name, _ in plan.updates}
    if planned.choice == "gather":
        yield text("picture.gather")
    elif planned.choice in ways:
        yield text("picture.split", way=translate(ways[planned.choice]))
    elif not apart and stage is None:
        yield text("picture.whole")
    elif apart and not any(
        travel.collective.phase in ("forward", "backward") and not travel.collective.arrays
        for travel in travels_of(plan, number)
    ):
        yield text("picture.alone")
    if any(cut.axis in BATCH_AXES for _, cut in planned.parameters):
        yield text("picture.kept")
    if updated:
        yield text("picture.updates")
    if plan.batch.accumulate > 1:
        yield text("picture.micro", count=plan.batch.accumulate)


def _travels(plan: Plan, number: int) -> Iterator[str]:
    found = travels_of(plan, number)
    yield text("picture.travels") if found else text("picture.sends_nothing")
    yield from (f"• {travel}" for travel in found)
    if stage := between_stages(plan, number):
        yield text("picture.between_stages")
        yield from (f"• {travel}" for travel in stage)


def halo_sentences(plan: Plan, number: int, halo: Halo) -> Iterator[str]:
    """Yield what each rank along the spatial axis owns of what a layer reads, and fetches of whom.

    Where other axes repeat that, the first ranks stand for all.
    """
    planned = plan.layers[number]
    moved = next(
        each
        for each in travels_of(plan, number)
        if each.collective.name == f"{planned.layer.name}: halo"
    ).collective
    ranks = ranks_of(plan, number)
    here = plan.mesh.group(ranks[0], "spatial")
    for index, rank in enumerate(here):
        rows = (f"{a}-{b - 1}" if b > a else text("picture.none") for a, b in halo.owned(index))
        fetched = []
        for owner in halo.owners(index):
            part = halo.rows_sent(owner, index) / halo.sent(owner)
            nbytes = in_binary_units(plan.sent_by(moved, here[owner]) * part)
            fetched.append(text("picture.of", bytes=nbytes, rank=here[owner]))
        got = text("picture.nothing")
        if fetched:
            got = text("picture.fetches", what=", ".join(fetched))
        yield text("picture.owns", rank=rank, own=" × ".join(rows), got=got)
    if others := sorted(set(ranks) - set(here)):
        yield text("picture.others", ranks=numbered(others))
    yield from _window(planned, halo)


def _window(planned: LayerPlan, halo: Halo) -> Iterator[str]:
    window = next((w for w in halo.windows if w.span > 1 or w.stride > 1), halo.windows[0])
    key = "picture.both_ways" if planned.layer.arguments[0].gradient else "picture.forward"
    yield text(key, window=_in_words(window))


def _in_words(window: Window) -> str:
    if window.table:
        return text("picture.several")
    sizes = {"rows": window.span, "stride": window.stride, "padding": window.padding}
    said = text("picture.window", **sizes)
    if window.transposed:
        said = text("picture.transposed", window=said)
    return said if window.mode == "zeros" else f"{said} ({window.mode})"
