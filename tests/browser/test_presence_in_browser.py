"""What the panel knows of its page: that it is there, and whether it draws."""

from __future__ import annotations

import pytest
from hands import open_panel, press, run_cell, says

pytestmark = pytest.mark.timeout(300)

PANEL = """import workbench as wb

wb.app(workload="digits-mlp", batch=16, steps=6, repeats=1)"""


def test_where_the_panel_is_seen_nothing_is_printed(watched, notebook):
    panel = PANEL.replace("wb.app", "panel = wb.app") + "\npanel"
    waits = "panel.run()\npanel.wait(200).status"
    page = watched.page
    open_panel(page, notebook(panel, waits, "panel._view.presence.drawn"))
    run_cell(page, 1)
    says(page, "Done")
    run_cell(page, 2)
    outputs = page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output")
    outputs.get_by_text("True").wait_for(timeout=20_000)
    waited = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output")
    assert waited.all_inner_texts() == ["'done'"]
    assert page.locator(".wb-panel > .wb-charts:not(.wb-unseen)").count() == 1
    assert watched.errors == []


def test_where_figures_cannot_be_drawn_there_are_still_ones(watched, notebook):
    page = watched.page
    page.route("**/@bokeh/jupyter_bokeh/**", lambda route: route.abort())
    open_panel(page, notebook(PANEL))
    page.get_by_text("This page cannot draw live figures").wait_for(timeout=60_000)

    # What cannot be chosen has its reason where one looks, and is not taken.
    page.locator(".wb-impossible").get_by_text("channel=2 splits convolutions").wait_for()
    page.locator(".wb-axis-channel select").select_option(label="2 ✗")
    alert = page.locator(".wb-strategy [role=alert]")
    alert.get_by_text("channel=2 was not taken").wait_for(timeout=20_000)
    assert page.locator(".wb-axis-channel select").evaluate("each => each.selectedIndex") == 0

    press(page, "Run")
    says(page, "Done")
    still = page.locator(".wb-panel svg", has_text="Measured speedup")
    still.first.wait_for(timeout=20_000)
    assert page.locator(".wb-panel > .wb-charts.wb-unseen").count() == 1
    page.locator(".wb-table:visible").first.wait_for(timeout=20_000)
