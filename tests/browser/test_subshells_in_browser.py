"""Buttons while a cell runs, with JupyterLab's kernel subshells on, as they are, and off."""

from __future__ import annotations

import json

import pytest
from hands import column, do, open_panel, press, run_cell, save, says

pytestmark = pytest.mark.timeout(300)

PANEL = "import workbench as wb\n\nwb.app(batch=512, steps=20_000, repeats=1)"
LONG = "import time\n\nfor _ in range(3_000):\n    time.sleep(0.1)"
# Steps are long, so that there are few, and the figure has each.
STEPS = f"() => ({column('loss', 'time_s')})().map(times => times.length)"
SETTING = "@jupyterlab/apputils-extension:kernels-settings"


def set_subshells(browser, jupyter, where: str) -> None:
    """Set what JupyterLab sends the messages of widgets to, as its settings page does."""
    base, _, token = jupyter.partition("?token=")
    context = browser.new_context()
    answer = context.request.put(
        f"{base.partition('/lab')[0]}/lab/api/settings/{SETTING}",
        data=json.dumps({"raw": json.dumps({"commsOverSubshells": where})}),
        headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
    )
    assert answer.ok, answer.text()
    context.close()


ENDS = column("loss", "end_s")


def test_run_pause_step_and_stop_while_a_cell_runs(watched, notebook, browser, jupyter):
    address = notebook(PANEL, LONG)
    for subshells in ("disabled", "perCommTarget"):  # it leaves the setting as it was
        set_subshells(browser, jupyter, subshells)
        steer(watched.page, address, subshells)
        # The kernel and its cluster go on; the page is loaded with the other setting.
        do(watched.page, "notebook:clear-all-cell-outputs")
        save(watched.page)
    assert watched.errors == []
    assert watched.strayed == []


def steer(page, address, subshells):
    open_panel(page, address)
    press(page, "Run")
    says(page, "repeat 1 of 1")
    page.wait_for_function(f"() => ({STEPS})().some(steps => steps > 2)", timeout=60_000)
    press(page, "Pause")
    says(page, "Paused")
    page.wait_for_timeout(1_000)  # what was made before the pause has come
    (before,) = page.evaluate(STEPS)
    press(page, "Step")
    page.wait_for_function(f"() => ({STEPS})()[0] === {before + 1}", timeout=20_000)
    says(page, "Paused")
    press(page, "Go on")
    (paused_s,) = page.evaluate(ENDS)
    page.wait_for_function(f"() => ({ENDS})()[0] > {paused_s}", timeout=20_000)

    run_cell(page, 1)
    running = page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt", has_text="*")
    running.wait_for(timeout=20_000)
    (during_s,) = page.evaluate(ENDS)  # of very many steps not every one is drawn
    page.wait_for_function(f"() => ({ENDS})()[0] > {during_s}", timeout=60_000)  # it still draws
    press(page, "Stop")
    if subshells == "disabled":  # the kernel does one thing after another: first the cell
        page.wait_for_timeout(1_000)
        assert running.count() == 1
        do(page, "notebook:interrupt-kernel")
        says(page, "Stopped after")
    else:
        says(page, "Stopped after")
        assert running.count() == 1
        do(page, "notebook:interrupt-kernel")
    page.locator(".jp-OutputArea-output", has_text="KeyboardInterrupt").first.wait_for()
