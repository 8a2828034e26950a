"""The panel outside JupyterLab: in Notebook 7, and as a page of Voilà's."""

from __future__ import annotations

import sys
from contextlib import suppress

import pytest
from hands import POINTS, press, says
from served import served, write_notebook

from workbench.ui.lab import voila_command

pytestmark = pytest.mark.timeout(360)

PANEL = """import workbench as wb

wb.app(workload="digits-mlp", batch=16, steps=6, repeats=1)"""


def run_and_stop(page):
    """Measure something, then stop something."""
    page.locator(".wb-run").wait_for(timeout=150_000)
    page.locator(".wb-chart-speedup canvas").first.wait_for(timeout=20_000)
    press(page, "Run")
    says(page, "Done")
    page.wait_for_function(f"() => ({POINTS})().length === 3", timeout=20_000)
    page.locator(".wb-badge-yes").wait_for(timeout=20_000)
    page.locator(".wb-steps input").fill("20000")
    page.locator(".wb-steps input").press("Tab")
    press(page, "Run")
    says(page, "repeat 1 of 1")
    press(page, "Stop")
    says(page, "Stopped after")


def run_first_cell(page):
    """Run it as a person does: where the page or its kernel does not listen yet, again."""
    from playwright.sync_api import TimeoutError as Late

    for _ in range(5):
        page.locator(".jp-CodeCell .jp-InputArea-editor").first.click()
        page.keyboard.press("Shift+Enter")
        with suppress(Late):
            page.locator(".wb-run").wait_for(timeout=30_000)
            return


def test_the_panel_runs_and_stops_in_notebook_7(watched, tmp_path):
    pytest.importorskip("notebook", reason="Notebook 7 is not installed")
    name = write_notebook(tmp_path / "panel.ipynb", PANEL)
    (tmp_path / "own").mkdir()
    command = [sys.executable, "-m", "notebook", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={tmp_path}", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0"]
    with served(command, tmp_path / "own", r"http://127\.0\.0\.1:\d+/\S*\?token=\w+") as address:
        base, _, query = address.partition("?")
        page = watched.page
        page.goto(f"{base.rpartition('/')[0]}/notebooks/{name}?{query}")
        page.locator("[data-status=idle]").first.wait_for(timeout=60_000)
        run_first_cell(page)
        run_and_stop(page)
    # The Dask pane's extension wants JupyterLab's shell and settings, and says so; the panel not.
    others = ("dask-labextension", "reading 'schema'")
    assert [said for said in watched.errors if not any(other in said for other in others)] == []
    assert watched.strayed == []


def test_the_panel_runs_and_stops_as_a_page_of_voila(watched, tmp_path):
    pytest.importorskip("voila", reason="Voilà is not installed")
    name = write_notebook(tmp_path / "panel.ipynb", PANEL)
    (tmp_path / "own").mkdir()
    command = voila_command(tmp_path, port=0, browser=False, notebook=name)
    with served(command, tmp_path / "own", r"http://127\.0\.0\.1:\d+/\S*\?token=\w+") as address:
        page = watched.page
        page.goto(address)
        run_and_stop(page)
    assert watched.strayed == []
