"""What is kept: a sweep as files, a share code, the program; and how to go on after what breaks."""

from __future__ import annotations

import ast
import json
from itertools import pairwise

import pytest
from hands import POINTS, column, do, open_panel, press, run_cell, says, set_number, unfold

from workbench.sharing import decode

pytestmark = pytest.mark.timeout(600)

SWEEP_MS = 360_000  # every strategy is measured and proved

PANEL = """import workbench as wb

wb.app(workload="digits-mlp", strategy="tensor=2", batch=16, steps=6, repeats=1)"""
STEPS = f"() => ({column('loss', 'time_s')})().map(times => times.length)"
KILL = """import os, signal
from workbench.cluster.lab import current_lab

for worker in current_lab().client.run(os.getpid).values():
    os.kill(worker, signal.SIGKILL)"""


def told(page, text):
    page.locator(".wb-keep [role=status]").get_by_text(text).first.wait_for(timeout=60_000)


def test_a_sweep_is_kept_restored_and_found_again_by_another_kernel(
    watched, notebook, notebooks, browser
):
    page = watched.page
    open_panel(page, notebook(PANEL, KILL))
    press(page, "Sweep")
    says(page, "Done", timeout_ms=SWEEP_MS)
    table = page.locator(".wb-panel > .widget-html .wb-table").first
    for strategy in ("data=2", "tensor=2"):
        table.get_by_text(strategy).first.wait_for(timeout=20_000)
    rows = table.locator("tbody tr").count()
    assert rows > 4

    # Everything that was measured, as files for other programs.
    unfold(page, "Keep: share code")
    page.locator(".wb-export-text input").fill("kept")
    page.locator(".wb-export-text input").press("Tab")
    page.locator(".wb-export").click()
    told(page, "files are in")
    kept = notebooks / "kept"
    lines = (kept / "table.csv").read_text().splitlines()
    assert len(lines) == rows + 1
    assert (kept / "speedup.svg").read_text().startswith("<svg")
    assert (kept / "speedup.png").read_bytes().startswith(b"\x89PNG")
    check_trace(json.loads((kept / "trace.json").read_text())["traceEvents"])
    check_report(browser, kept / "report.html")

    # The share code brings the controls back; the program says the same.
    code = page.locator(".wb-keep pre").inner_text()
    assert decode(code)["strategy"] == "tensor=2"
    copy = page.locator(".wb-keep .wb-copy")
    copy.focus()
    page.keyboard.press("Enter")
    assert copy.inner_text() == "Copied"
    assert page.evaluate("() => getSelection().toString()").strip() == code
    set_number(page, "batch", 99)
    page.locator(".wb-axis-tensor select").select_option(index=0)
    page.locator(".wb-axis-data select").select_option(index=1)
    page.locator(".wb-fold pre", has_text="batch_size=99").first.wait_for(state="attached")
    page.locator(".wb-restore-text input").fill(code)
    page.locator(".wb-restore-text input").press("Tab")
    page.locator(".wb-restore").click()
    told(page, "The controls are set")
    assert page.locator(".wb-batch input").input_value() == "16"
    assert page.locator(".wb-axis-tensor select").input_value() == "2"
    unfold(page, "The same in Python")
    program = page.locator(".wb-fold pre", has_text="wb.compare").inner_text()
    ast.parse(program)
    assert "tensor=2" in program
    assert "batch_size=16" in program

    # A worker that is killed ends the run with a sentence, and Run works after that.
    set_number(page, "steps", 20_000)
    press(page, "Run")
    says(page, "repeat 1 of 1")
    page.wait_for_function(f"() => ({STEPS})().some(steps => steps > 2)", timeout=60_000)
    run_cell(page, 1)
    says(page, "Failed after")
    page.locator(".wb-trouble [role=alert]").get_by_text("is gone").first.wait_for(timeout=20_000)
    set_number(page, "steps", 6)
    press(page, "Run")
    says(page, "Done")

    assert watched.errors == []  # after a restart JupyterLab complains of the comms that are gone

    # Another kernel shows what this one has measured.
    do(page, "kernelmenu:restart")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.wait_for_timeout(1_000)
    open_panel(page, page.url)
    assert page.evaluate(POINTS) == []
    unfold(page, "Keep: share code")
    page.locator(".wb-attach").click()
    told(page, "Shown from")
    says(page, "From a folder")
    page.wait_for_function(f"() => ({POINTS})().length > 1", timeout=20_000)
    assert watched.strayed == []


def check_trace(events):
    """Assert that on no track of a Chrome trace one span begins before the one before has ended."""
    spans = sorted(
        (e["pid"], e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"
    )
    assert spans
    for before, after in pairwise(spans):
        if before[:2] == after[:2]:
            assert after[2] >= before[3] - 1e-3  # times are in µs


def check_report(browser, path):
    """Assert that a report draws its figures from the file alone."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(f"() => ({POINTS})().length > 4", timeout=20_000)
    assert page.locator("canvas").count() >= 4
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()
