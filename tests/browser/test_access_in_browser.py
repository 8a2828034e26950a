"""What axe finds wrong in the panel for people who cannot see it well, or use no mouse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # contrast is counted beside the other tests

from hands import SOON_MS, open_panel, press, says
from test_contrast import TEXT, contrast

pytestmark = pytest.mark.timeout(240)

PANEL = """import workbench as wb

wb.app(workload="digits-mlp", batch=16, steps=6, repeats=1, compare=["tensor=2"])"""
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


# Axe knows nothing of what is drawn on a canvas: text at points, as it looks on the page, and that
# of legends, which Bokeh colours by itself.
DRAWN = """() => Bokeh.documents.flatMap(document => document.roots())
    .flatMap(root => root.renderers).filter(drawn => drawn.glyph?.type === "Text")
    .map(drawn => drawn.glyph.text_color.value)"""
LEGENDS = "labels => labels.map(label => getComputedStyle(label).color)"
SEEN = """colors => {
  const paint = document.createElement("canvas").getContext("2d")
  const theme = getComputedStyle(document.querySelector(".wb-panel"))
  const seen = (color) => {
    for (const each of [theme.getPropertyValue("--jp-layout-color0"), color]) {
      paint.fillStyle = each
      paint.fillRect(0, 0, 1, 1)
    }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3)
  }
  return [seen("transparent"), ...colors.map(seen)]
}"""


def check_figures(page):
    """Assert that all text in figures is read on the page, also right after a change of theme."""
    page.wait_for_function(f"() => ({DRAWN})().every(color => color !== '#767676')")
    colors = page.evaluate(DRAWN)
    assert len(colors) >= 3
    colors += page.locator(".wb-chart .bk-Legend .bk-label").evaluate_all(LEGENDS)
    assert len(colors) >= 10
    behind, *seen = page.evaluate(SEEN, colors)
    assert min(contrast(color, behind) for color in seen) >= TEXT, seen


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
    check_figures(page)
    # A wrong number, in the other theme.
    page.evaluate(
        "() => { jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }"
    )
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached", timeout=SOON_MS)
    check_figures(page)
    page.locator(".wb-steps input").fill("0")
    page.keyboard.press("Tab")
    page.locator(".wb-steps [role=alert]").wait_for(timeout=SOON_MS)
    press(page, "Train")
    assert found(page) == []
    assert watched.strayed == []
