"""The picture of the cut and the timeline, linked by hover and by keyboard, in a real browser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bokeh.embed import file_html
from bokeh.resources import INLINE

sys.path.insert(0, str(Path(__file__).parents[1]))  # the networks are beside the other tests

from test_operator_networks import network

from workbench.planning import plan
from workbench.timeline import Bar, Timeline
from workbench.ui.figure_table import data_table
from workbench.ui.layer_picture import picture
from workbench.ui.timeline_figure import timeline_chart, timeline_columns
from workbench.ui.traffic import traffic

pytestmark = pytest.mark.timeout(120)

LAYER = "down1.0"
SELECTED = """() => Bokeh.documents.flatMap(
    document => [...document.get_model_by_name("wb-timeline").selected.indices])"""
FADED = "element => element.style.opacity"
PATCHES = """() => { window.patched = 0
    Bokeh.documents[0].on_change(event => { if (event.sync) window.patched += 1 }) }"""


def page_of(folder: Path) -> Path:
    """Write a page with a timeline of two ranks, its table, and the plan that they carry out."""
    kinds = [("compute", ""), ("comm", f"{LAYER}: halo"), ("compute", ""), ("comm", "head: sum")]
    bars = [
        Bar(rank, kind, name, 0.01 * n, 0.01 * n + 0.01, 8)
        for rank in (0, 1)
        for n, (kind, name) in enumerate(kinds)
    ]
    chart = timeline_chart()
    columns = timeline_columns(Timeline("spatial=2", 7, tuple(bars)))
    chart.draw(columns)
    found = plan(network("unet"), "spatial=2")
    page = file_html(chart.figure, INLINE)
    body = picture(found, LAYER).svg + traffic(found) + data_table("timeline", columns)
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"{body}</body>"), encoding="utf-8")
    return file


def test_a_share_and_its_bars_stand_out_together(watched, tmp_path):
    page = watched.page
    page.goto(page_of(tmp_path).as_uri())
    page.wait_for_function("() => window.wbLink != null", timeout=60_000)
    page.evaluate(PATCHES)
    shares = page.locator("svg.wb-layer .wb-halo")
    assert shares.count() == 2

    # A rank's share of a layer: its bars of that layer, and the other share fades.
    shares.nth(1).hover()
    page.wait_for_function(f"() => ({SELECTED})().join() === '5'", timeout=20_000)
    assert shares.nth(0).evaluate(FADED) == "0.3"
    assert shares.nth(1).evaluate(FADED) == ""

    # The layer as a whole: its bars on both ranks.
    page.locator("svg.wb-layer").hover(position={"x": 300, "y": 12})
    page.wait_for_function(f"() => ({SELECTED})().join() === '1,5'", timeout=20_000)

    # A part of the weight: both ranks have it, and so both shares stand out.
    page.locator("svg.wb-layer [data-wb-array=weight]").hover()
    page.wait_for_function(f"() => ({SELECTED})().join() === '1,5'", timeout=20_000)
    assert [share.evaluate(FADED) for share in shares.all()] == ["", ""]

    # What a rank keeps, by keyboard: all its bars.
    kept = page.locator("tr[data-wb-ranks='0']").first
    kept.scroll_into_view_if_needed()  # first: another part may come under the pointer
    page.mouse.move(2, 2)
    page.wait_for_timeout(200)
    kept.focus()
    page.wait_for_function(f"() => ({SELECTED})().join() === '0,1,2,3'", timeout=20_000)

    # And back: a bar has its rank's share stand out.
    page.evaluate("() => scrollTo(0, 0)")
    place = page.locator("canvas").first.bounding_box()
    x, y = place["x"] + 0.5 * place["width"], place["y"]
    for height in range(60, int(place["height"]) - 30, 6):
        page.mouse.move(x, y + height)
        page.wait_for_timeout(20)
        if shares.nth(0).evaluate(FADED) == "0.3":
            break
    assert [share.evaluate(FADED) for share in shares.all()] == ["0.3", ""]

    page.mouse.move(2, 2)
    page.locator("h4").first.hover()
    page.wait_for_function(f"() => ({SELECTED})().length === 0", timeout=20_000)
    assert [share.evaluate(FADED) for share in shares.all()] == ["", ""]
    assert page.evaluate("() => window.patched") == 0  # the kernel has no part in it
    assert watched.errors == []
