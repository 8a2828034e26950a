"""The pages in the Dask dashboard, as a person sees them while something runs."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from workloads import make

from workbench.cluster.lab import Lab
from workbench.dashboard.pages import PAGES
from workbench.run import run

pytestmark = pytest.mark.timeout(360)

LAST = """name => Bokeh.documents.flatMap(
    document => Array.from(document.get_model_by_name("wb-loss")?.data.end_s ?? [])).at(-1) ?? 0"""
STEP = re.compile(r"step [\d,]+ of 10,000,000$")
BARS = """() => Bokeh.documents.flatMap(
    document => Array.from(document.get_model_by_name("wb-timeline")?.data.label ?? [])).length"""


def advances(page, address: str) -> None:
    """Open a page and wait until it says a later step.

    Of a server that has no time Bokeh's browser side may never get its session ("assert
    self._session is not None"): such a page stands still until it is loaded again.
    """
    from playwright.sync_api import TimeoutError as Late

    for _ in range(3):
        page.goto(address)
        at = page.get_by_text(STEP).first
        at.wait_for(timeout=60_000)
        with suppress(Late):
            page.get_by_text(at.inner_text(), exact=True).wait_for(state="detached", timeout=30_000)
            return
    pytest.fail(f"{address} stands still.")


def test_the_pages_advance_while_a_run_goes_on(watched, lab: Lab, tmp_path: Path):
    page = watched.page
    base = lab.dashboard_link.removesuffix("/status")
    going = run(make(), "data=2", steps=10_000_000, folder=tmp_path, lab=lab)
    try:
        page.goto(f"{base}/workbench")
        page.locator("canvas").first.wait_for(timeout=60_000)
        page.get_by_role("link", name="Workbench", exact=True).wait_for(timeout=30_000)
        page.wait_for_function(f"() => ({LAST})() > 0", timeout=60_000)
        seen_s = page.evaluate(LAST)
        page.wait_for_function(f"() => ({LAST})() > {seen_s}", timeout=40_000)
        page.get_by_text("training under data=2").wait_for(timeout=10_000)
        for path in PAGES:
            advances(page, f"{base}{path}")
            page.locator("svg, canvas").first.wait_for(timeout=10_000)
            if "timeline" in path:
                page.wait_for_function(f"() => ({BARS})() > 2", timeout=60_000)
    finally:
        going.stop()
    page.get_by_text("Stopped").wait_for(timeout=40_000)
    assert watched.strayed == []
    assert watched.errors == []
