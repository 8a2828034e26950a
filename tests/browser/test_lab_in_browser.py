"""The Dask pages beside a lesson, as `workbench lab` opens it on a laptop."""

from __future__ import annotations

import pytest
from hands import KERNEL, run_cell
from served import write_notebook

pytestmark = pytest.mark.timeout(300)

CLUSTER = "import workbench as wb\n\nlab = wb.start(workers=1)"


def test_pages_stand_beside_any_lesson_on_a_laptop(watched, jupyter, notebooks):
    name = write_notebook(notebooks / "06-beside.ipynb", CLUSTER, "lab.close()")
    base, _, query = jupyter.partition("?")
    page = watched.page
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto(f"{base.partition('/lab')[0]}/lab/workspaces/beside/tree/{name}?{query}")
    for label in ("Workbench Speedup", "Workbench Timeline"):
        page.locator(".lm-DockPanel-tabBar").get_by_text(label).wait_for(timeout=60_000)
    page.wait_for_function(f"() => {KERNEL} === 'idle'", timeout=60_000)
    run_cell(page, 0)
    inside = page.frame_locator("iframe[src*='individual-workbench-speedup']")
    inside.get_by_text("Speedup").or_(inside.locator("canvas")).first.wait_for(timeout=90_000)
    other = page.frame_locator("iframe[src*='individual-workbench-timeline']")
    other.locator("canvas").first.wait_for(timeout=60_000)
    lesson = page.locator(".jp-NotebookPanel").bounding_box()
    beside = page.locator("iframe[src*='individual-workbench-speedup']").bounding_box()
    assert lesson["x"] + lesson["width"] <= beside["x"] + 20
    assert lesson["width"] > 750
    assert beside["width"] > 400
    run_cell(page, 1)
    page.wait_for_function(f"() => {KERNEL} === 'idle'", timeout=60_000)
    assert watched.strayed == []
