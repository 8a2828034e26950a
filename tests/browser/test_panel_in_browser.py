"""The start notebook and the report, as a person meets them: in a real browser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the fakes are beside the other tests

from fake_comparison import FakeComparison
from hands import LIMIT_MS, POINTS, press, save, says, set_number

from workbench.ui.report import write_report

pytestmark = pytest.mark.timeout(300)

TITLES = "() => Bokeh.documents.flatMap(d => d.roots().map(root => root.title?.text ?? ''))"

ENTRIES = """() => Bokeh.documents.flatMap(d => d.roots())
    .filter(root => root.title?.text.includes("speedup"))
    .map(root => root.above.find(part => part.items).items
        .filter(item => item.visible).map(item => item.name))"""


def open_notebook(page, address):
    """Open the notebook, touch nothing, and wait for the panel."""
    page.goto(address)
    page.locator(".wb-run").wait_for(timeout=60_000)


def test_run_stop_and_the_cells_of_the_notebook(watched, jupyter):
    page = watched.page
    open_notebook(page, jupyter)
    page.get_by_text("1,438 samples").wait_for(timeout=60_000)  # what suits the workload is in
    assert page.evaluate(POINTS) == []

    # Bad input: one sentence beside the control, and nothing starts.
    set_number(page, "batch", 0)
    press(page, "Run")
    page.locator(".wb-batch [role=alert]").get_by_text("Batch is 0").wait_for(timeout=20_000)
    set_number(page, "batch", 8)  # small: this is about the panel

    # Where the chunks live: the keyboard adds a worker, and what moves is said and hatched.
    page.locator(".wb-fold summary", has_text="Where the chunks live").click()
    page.locator(".wb-where svg").wait_for(timeout=60_000)
    page.locator(".wb-where").get_by_role("button", name="Add a worker").focus()
    page.keyboard.press("Enter")
    page.locator(".wb-said").get_by_text("a fair part is 20.0%").wait_for(timeout=20_000)
    page.locator(".wb-where svg [fill^='url(#wb-hatch']").first.wait_for(timeout=20_000)

    # What cannot be is told in words before anything runs; a hybrid is two menus.
    page.locator(".wb-axis-tensor select").select_option(label="2")
    page.locator(".wb-workers [role=alert]").get_by_text("data=2,tensor=2 has 4 ranks").wait_for(
        timeout=20_000
    )
    page.locator(".wb-axis-tensor select").select_option(label="–")

    # Predict first: the guess is locked, and stands on the figure before anything is measured.
    page.locator(".wb-predict input[type=number]").fill("1.5")
    page.locator(".wb-predict input[type=number]").press("Tab")
    page.locator(".wb-predict .wb-lock").click()
    page.wait_for_function(f"() => ({POINTS})().length === 1", timeout=20_000)
    assert page.evaluate(ENTRIES) == [["legend.ideal"]]  # what is drawn, and no more

    # Run: the cluster starts, points appear while it goes on, the badge at the end.
    set_number(page, "steps", 6)
    page.locator(".wb-run").focus()
    page.keyboard.press("Space")  # the keyboard alone does it
    says(page, "Starting a cluster")
    page.wait_for_function(f"() => ({POINTS})().length > 1", timeout=LIMIT_MS)
    says(page, "Done")
    assert sorted(page.evaluate(POINTS)) == [1, 2, 2, 2]
    page.locator(".wb-predict").get_by_text("You guessed 1.50×").wait_for(timeout=10_000)
    badge = page.locator(".wb-badge-yes")
    badge.get_by_text("Same result as serial").wait_for(timeout=10_000)
    page.get_by_text("times as fast as").or_(page.get_by_text("slower")).first.wait_for(
        timeout=10_000
    )

    # Every figure's data is there as a table, by the keyboard too.
    page.locator(".wb-chart-speedup summary").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator(".wb-chart-speedup tbody tr:visible").count() == 4

    # Another language: controls, message and figures, and back again.
    page.locator(".wb-language button").nth(1).click()
    says(page, "完成")
    page.wait_for_function(f"() => ({TITLES})().includes('实测加速比（越高越好）')", timeout=20_000)
    page.locator(".wb-panel").get_by_role("button", name="运行").wait_for(timeout=10_000)
    page.locator(".wb-language button").nth(0).click()
    says(page, "Done")

    # A share code that somebody has forged says so; files are written where the notebook is.
    page.locator(".wb-keep summary").click()
    page.locator(".wb-restore-text input").fill("wb1:forged")
    page.locator(".wb-restore-text input").press("Tab")
    page.locator(".wb-restore").click()
    page.locator(".wb-keep [role=status]").get_by_text("damaged").wait_for(timeout=20_000)

    # Pause and a single step, then Stop, in the midst of a run.
    set_number(page, "steps", 500)
    press(page, "Run")
    says(page, "repeat 1 of 1")
    press(page, "Pause")
    says(page, "Paused")
    press(page, "Step")
    says(page, "Paused")
    press(page, "Stop")
    says(page, "Stopped after")

    # The rest of the notebook: the same by code.
    for cell in page.locator(".jp-CodeCell").all()[1:]:
        cell.locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output")
    output.get_by_text("ms per step").first.wait_for(timeout=LIMIT_MS)
    # Only the check complains, which nobody has answered.
    output.get_by_text("AssertionError: Count the rows").first.wait_for(timeout=LIMIT_MS)
    page.locator(".jp-StatusBar-Widget").get_by_text("Idle").wait_for(timeout=60_000)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 1

    # A page that is loaded again shows the panel as it is now, and its buttons work.
    save(page)
    page.reload()
    page.locator(".wb-run").wait_for(timeout=60_000)
    says(page, "Stopped after")
    page.wait_for_function(f"() => ({POINTS})().length > 0", timeout=60_000)
    set_number(page, "steps", 2)
    press(page, "Run")
    page.locator(".wb-steps [role=alert]").wait_for(timeout=20_000)

    assert watched.errors == []
    assert watched.strayed == []


def test_the_report_opens_with_the_network_off(watched, tmp_path):
    comparison = FakeComparison()
    comparison.go_on("done")
    page = watched.page
    page.context.set_offline(True)
    page.goto(write_report(comparison, tmp_path / "report.html").as_uri())
    page.wait_for_function(f"() => ({POINTS})().length === 3", timeout=20_000)
    page.locator("canvas").first.wait_for(timeout=20_000)
    assert page.locator("table").first.locator("tbody tr").count() == 3
    assert watched.errors == []
    assert watched.strayed == []
