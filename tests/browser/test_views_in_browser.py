"""One run looked at in several ways: another view, zoom, a narrow window; and what that sends."""

from __future__ import annotations

import pytest
from hands import POINTS, column, do, open_panel, press, run_cell, save, says

pytestmark = pytest.mark.timeout(240)

PANEL = "import workbench as wb\n\nwb.app(batch=8, steps=20_000, repeats=1)"
TALL = "print('further down\\n' * 200)"
MOST_MESSAGES_PER_S = 60
LOOK_S = 10
ENDS = column("loss", "end_s")
FRAMES = """() => Bokeh.documents.flatMap(d => d.roots())
    .filter(root => root.title?.text.includes("loss"))
    .map(root => [root.below[0].visible, root.legend?.visible ?? null,
                  root.center.some(part => part.text && part.visible)])"""
WIDE = """() => Array.from(document.querySelectorAll(".wb-panel *"))
    .filter(element => !element.closest(".wb-scroll, pre, [data-root-id]"))
    .filter(element => element.getBoundingClientRect().width > 0)
    .filter(element => element.getBoundingClientRect().right >
        element.closest(".wb-panel").getBoundingClientRect().right + 1)
    .map(element => element.className + ": " + element.textContent.slice(0, 60))"""


def test_two_views_zoom_and_a_narrow_window_while_a_run_goes_on(watched, notebook):
    page = watched.page
    sent: list[object] = []
    page.on(
        "websocket", lambda socket: socket.on("framereceived", lambda frame: sent.append(frame))
    )
    open_panel(page, notebook(PANEL))
    press(page, "Run")
    says(page, "repeat 1 of 1")
    page.wait_for_function(f"() => ({ENDS})()[0] > 0", timeout=60_000)

    # Streaming, all that the server sends the page stays well below what Jupyter drops.
    sent.clear()
    page.wait_for_timeout(1e3 * LOOK_S)
    assert 0 < len(sent) < MOST_MESSAGES_PER_S * LOOK_S

    # In a narrow window nothing sticks out; widened again it goes on where it is.
    page.set_viewport_size({"width": 600, "height": 900})
    page.wait_for_timeout(1_000)
    assert page.evaluate(WIDE) == []
    page.set_viewport_size({"width": 1280, "height": 1000})

    # A second view of the same output begins as the first is, and both go on alike.
    do(page, "notebook:create-output-view")
    page.locator(".wb-panel").nth(1).wait_for(timeout=20_000)
    page.wait_for_function(f"() => ({ENDS})().length === 2", timeout=20_000)
    (seen, _) = page.evaluate(ENDS)
    grown = f"() => ({ENDS})().every(end_s => end_s > {seen})"
    page.wait_for_function(grown, timeout=20_000)
    assert page.evaluate(FRAMES) == [page.evaluate(FRAMES)[0]] * 2

    # Zoomed and moved while it streams, no view breaks or is made anew.
    documents = page.evaluate("() => Bokeh.documents.length")
    timeline = page.locator(".wb-chart-timeline canvas").first
    timeline.scroll_into_view_if_needed()
    box = timeline.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for turn in range(10):
        page.mouse.wheel(0, -120 if turn % 2 else 100)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2 + 10 * turn, box["y"] + box["height"] / 2)
        page.mouse.up()
        page.wait_for_timeout(200)
    assert page.evaluate("() => Bokeh.documents.length") == documents

    # The second view's buttons are live too, and at the end both show the same.
    page.locator(".wb-stop").nth(1).click()
    for n in range(2):
        stopped = page.locator(".wb-message").nth(n).get_by_text("Stopped after")
        stopped.wait_for(timeout=60_000, state="attached")
    page.wait_for_function(f"() => new Set(({ENDS})()).size === 1", timeout=20_000)
    both = page.evaluate(POINTS)
    assert both[: len(both) // 2] == both[len(both) // 2 :]
    assert watched.errors == []
    assert watched.strayed == []


def test_out_of_sight_and_loaded_again_while_a_run_goes_on(watched, notebook):
    page = watched.page
    open_panel(page, notebook(PANEL, TALL))
    run_cell(page, 1)
    below = page.get_by_text("further down").first
    below.wait_for(timeout=20_000)
    press(page, "Run")
    says(page, "repeat 1 of 1")
    page.wait_for_function(f"() => ({ENDS})()[0] > 0", timeout=60_000)

    # What is out of sight for a while is there again, up to date, and in one piece.
    (seen_s,) = page.evaluate(ENDS)
    below.evaluate("element => element.scrollIntoView({block: 'end'})")
    page.wait_for_timeout(3_000)
    assert page.locator(".wb-charts canvas").first.bounding_box()["y"] < 0
    page.locator(".wb-charts").first.scroll_into_view_if_needed()
    page.wait_for_function(f"() => ({ENDS})()[0] > {seen_s} + 2", timeout=20_000)
    assert len(page.evaluate(ENDS)) == 1
    drawn = page.locator(".wb-charts canvas").first.bounding_box()
    assert drawn["width"] > 100
    assert drawn["height"] > 100

    # Loaded again, the page shows the run as it is by now, and its buttons work.
    save(page)
    (seen_s,) = page.evaluate(ENDS)
    page.reload()
    page.locator(".wb-run").wait_for(timeout=60_000)
    page.wait_for_function(f"() => ({ENDS})()[0] > {seen_s}", timeout=60_000)
    (seen_s,) = page.evaluate(ENDS)
    page.wait_for_function(f"() => ({ENDS})()[0] > {seen_s}", timeout=20_000)
    assert page.locator(".wb-charts canvas").count() > 3
    press(page, "Stop")
    says(page, "Stopped after")
    assert watched.errors == []
    assert watched.strayed == []
