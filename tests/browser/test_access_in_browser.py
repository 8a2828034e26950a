"""What axe finds wrong in the panel for people who cannot see it well, or use no mouse."""

from __future__ import annotations

import pytest
from hands import SOON_MS, open_panel, press, says

pytestmark = pytest.mark.timeout(240)

PANEL = """import workbench as wb

wb.app(workload="digits-mlp", batch=16, steps=6, repeats=1, compare=["tensor=2"])"""
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


def found(page):
    """Return what axe finds in the panel: the rule, the element, and why."""
    Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
    results = Axe().run(page, ".wb-panel", RULES).response
    return [
        (each["id"], node["html"][:160], node["failureSummary"].splitlines()[1:3])
        for each in results["violations"]
        for node in each["nodes"]
    ]


def test_axe_finds_nothing_in_the_panel_before_and_after_a_run_in_both_themes(watched, notebook):
    page = watched.page
    open_panel(page, notebook(PANEL))
    page.locator(".wb-workload .wb-hint").get_by_text("samples of").wait_for(timeout=SOON_MS)
    for summary in page.locator(".wb-fold summary").all():
        summary.click()
    assert found(page) == []
    page.locator(".wb-run").focus()
    page.keyboard.press("Space")
    says(page, "Done")
    assert found(page) == []
    # A wrong number, in the other theme.
    page.evaluate(
        "() => { jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }"
    )
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached", timeout=SOON_MS)
    page.locator(".wb-steps input").fill("0")
    page.keyboard.press("Tab")
    page.locator(".wb-steps [role=alert]").wait_for(timeout=SOON_MS)
    press(page, "Train")
    assert found(page) == []
    assert watched.strayed == []
