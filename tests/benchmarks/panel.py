"""Time the panel in a real browser, as a person meets it; run by hand.

    python tests/benchmarks/panel.py live       # first point, switch, frames, kernel, slowdown
    python tests/benchmarks/panel.py memory     # what 30 minutes of streaming leave in the browser
    python tests/benchmarks/panel.py timeline   # 8 ranks with 10,000 spans each

JupyterLab is started as ``workbench lab`` does it, headless Chromium draws without a GPU, and both
share the machine's cores with the ranks. Close everything else that uses the machine.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
from bokeh.embed import file_html
from bokeh.resources import INLINE
from hands import POINTS, column, do, open_panel, press, run_cell, says, set_number
from served import chromium, served, write_notebook

from workbench.machine import describe
from workbench.timeline import Bar, Timeline
from workbench.ui.lab import lab_command
from workbench.ui.timeline_figure import timeline_chart, timeline_columns

LONG_MS = 600_000
LOOK_S = 6
RESTING = 0.5  # of a core
RANKS, SPANS = 8, 10_000
KINDS = ("compute", "comm", "wait")

OPEN = """import workbench as wb
if "lab" not in globals():
    lab = wb.start(workers=2, threads=1)
panel = wb.app(
    lab=lab, workload="digits-cnn", strategy="data=2", threads=1, batch=128, steps={steps},
)
panel"""
BY_CODE = """import time
panel.close()
work = wb.workload("digits-cnn").with_(batch_size=128)
run = wb.run(work, "data=2", lab=lab, steps={steps})
while not run.step:
    time.sleep(0.1)
print("begun")
print(f"ms: {{1e3 * run.wait().step_s:.3f}}")"""
BY_PANEL = """print(f"ms: {1e3 * panel.training.run.step_s:.3f}")"""
ADDRESS = "print(lab.dashboard_link)"

FRAMES = """limit_ms => new Promise(done => {
  const at = []
  const look = now => {
    at.push(now)
    now - at[0] < limit_ms ? requestAnimationFrame(look) : done(at)
  }
  requestAnimationFrame(look)
})"""
DRAW = """([seen, whole]) => new Promise(done => {
  const figure = Bokeh.documents[0].get_model_by_name("wb-timeline")
  const callback = Bokeh.documents[0].roots()[0].x_range.js_property_callbacks["change:start"][0]
  const began = performance.now()
  figure.data = seen
  callback.args.whole.data = whole
  // Bokeh paints in the next frame; the one after it comes when that is done.
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)))
})"""


@contextmanager
def notebook(*cells: str) -> Iterator[Any]:
    """Yield a page with a notebook of these cells, of which the first has opened the panel."""
    with tempfile.TemporaryDirectory() as made, chromium() as browser:
        books, own = Path(made, "notebooks"), Path(made, "own")
        books.mkdir()
        own.mkdir()
        name = write_notebook(books / "panel.ipynb", *cells)
        command = lab_command(books, port=0, browser=False, notebook=name)
        command.append("--LabApp.expose_app_in_browser=True")
        with served(command, own, r"http://127\.0\.0\.1:\d+/\S*\?token=\w+") as address:
            context = browser.new_context(viewport={"width": 1280, "height": 1000})
            page = context.new_page()
            open_panel(page, address)
            page.get_by_text("1,438 samples").wait_for(timeout=LONG_MS)
            yield page
            context.close()


def live(repeats: int, steps: int) -> None:
    """Print how soon a run is seen, how smoothly, and what looking at it costs the run."""
    with notebook(OPEN.format(steps=steps), BY_CODE.format(steps=steps), BY_PANEL, ADDRESS) as page:
        first, speedup = _first_points(page, repeats)
        _tell("click on Run → first point of the loss, s", first)
        _tell("click on Run → first point of the speedup, s", speedup)
        _tell("switch of strategy, weights kept → its first step, s", _switches(page, repeats))
        rows = [_turn(page) for _ in range(repeats)]
        _tell("frames a second while it runs", [row["fps"] for row in rows])
        _tell("kernel without the panel, % of a core", [row["kernel_closed"] for row in rows])
        more = [row["kernel_open"] - row["kernel_closed"] for row in rows]
        _tell("kernel, for panel and Dask page, % of a core", more)
        _tell("ms per step, closed", [row["closed"] for row in rows])
        _tell("ms per step, panel and Dask page open", [row["open"] for row in rows])
        for name, how in (("open", "drawn on this machine"), ("elsewhere", "drawn elsewhere")):
            slower = [100 * (row[name] / row["closed"] - 1) for row in rows]
            _tell(f"slowdown, panel and Dask page {how}, %", slower)


def _first_points(page: Any, repeats: int) -> tuple[list[float], list[float]]:
    """Press Run; return how long it took to the first point of each figure, in seconds."""
    loss, speedup = [], []
    ends = column("loss", "end_s")
    set_number(page, "steps", 20)
    for turn in range(repeats + 1):
        set_number(page, "seed", turn)  # another task: what was measured before goes off the figure
        page.wait_for_timeout(5_000)  # what can be chosen now has been tried
        press(page, "Run")
        gone = f"() => ({POINTS})().length === 0 && ({ends})().length === 0"
        began = time.monotonic()
        page.wait_for_function(gone, timeout=LONG_MS, polling=20)
        page.wait_for_function(f"() => ({ends})().length > 0", timeout=LONG_MS, polling=20)
        seen_s = time.monotonic() - began
        page.wait_for_function(f"() => ({POINTS})().length > 0", timeout=LONG_MS, polling=20)
        if turn:  # the first warms the cluster
            loss.append(seen_s)
            speedup.append(time.monotonic() - began)
        _done(page)
    return loss, speedup


def _done(page: Any) -> None:
    """Wait until the run is done; tell why if it has failed."""
    message = page.locator(".wb-message")
    message.get_by_text("Done").or_(message.get_by_text("Failed")).wait_for(timeout=LONG_MS)
    if "Failed" in message.inner_text():
        raise RuntimeError(page.locator(".wb-trouble").inner_text())


def _switches(page: Any, repeats: int) -> list[float]:
    """Train, and switch between strategies while it goes on; return the seconds of each switch."""
    took = []
    set_number(page, "steps", 20_000)
    page.locator(".wb-train").click()
    says(page, "Training with data=2", LONG_MS)
    names = itertools.cycle((("tensor", "data"), ("data", "tensor")))
    for _, (to, off) in zip(range(repeats), names, strict=False):
        page.wait_for_timeout(2_000)
        page.locator(f".wb-axis-{off} select").select_option(label="–")
        page.locator(f".wb-axis-{to} select").select_option(label="2")
        page.locator(".wb-train", has_text=f"{to}=2").wait_for(timeout=LONG_MS)
        began = time.monotonic()
        page.locator(".wb-train").click()
        says(page, f"Training with {to}=2", LONG_MS)
        took.append(time.monotonic() - began)
    press(page, "Stop")
    says(page, "Stopped after", LONG_MS)
    return took


def _turn(page: Any) -> dict[str, float]:
    """Run with all closed, with panel and Dask page open, and drawn elsewhere, in any order.

    Nothing else looks at the page meanwhile: frames and the kernel have a run of their own.
    """
    found: dict[str, float] = {}
    ways = ["closed", "open", "elsewhere"]
    random.shuffle(ways)
    for way in ways:
        if way == "closed":
            run_cell(page, 1)
            page.get_by_text("begun").wait_for(timeout=LONG_MS)
            time.sleep(LOOK_S)
            found["kernel_closed"] = _kernel_share()
            found["closed"] = _printed(page, 1)
            continue
        with _panel_and_dask_page(page):
            _train(page)
            if way == "elsewhere":
                _hold_browser()
            _done(page)
            run_cell(page, 2)
            found[way] = _printed(page, 2)
            if way == "open":
                page.locator(".wb-over").click()
                _train(page)
                found["kernel_open"] = _kernel_share()
                at = page.evaluate(FRAMES, 1e3 * LOOK_S)
                found["fps"] = 1e3 * (len(at) - 1) / (at[-1] - at[0])
                press(page, "Stop")
                says(page, "Stopped after", LONG_MS)
    return found


@contextmanager
def _panel_and_dask_page(page: Any) -> Iterator[None]:
    """Open the panel, in sight, and the page /workbench; close the page after."""
    run_cell(page, 3)
    link = page.locator(".jp-OutputArea-output", has_text="/status").last
    link.wait_for(timeout=LONG_MS)
    # In a window of its own: what lies behind another tab is not drawn.
    window = page.context.browser.new_context(viewport={"width": 1280, "height": 1000})
    dashboard = window.new_page()
    dashboard.goto(link.inner_text().strip().replace("/status", "/workbench"))
    dashboard.locator("canvas").first.wait_for(timeout=LONG_MS)
    run_cell(page, 0)
    page.get_by_text("1,438 samples").wait_for(timeout=LONG_MS)
    page.locator(".wb-charts").first.scroll_into_view_if_needed()
    page.wait_for_timeout(2_000)
    yield
    window.close()


def _train(page: Any) -> None:
    page.locator(".wb-train").click()
    says(page, "Training with data=2", LONG_MS)


def _kernel_share() -> float:
    """Return how much of a core the kernel has taken, in percent, for a while from now."""
    kernel = _kernel()
    before = _cpu_s(kernel)
    time.sleep(LOOK_S)
    return 100 * (_cpu_s(kernel) - before) / LOOK_S


def _hold_browser() -> None:
    """Have Chromium stand still until the ranks rest, as if it drew on another machine."""
    browser = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "chromium"]
    for process in browser:
        process.suspend()
    time.sleep(LOOK_S)  # they are at work
    while _ranks_share() > RESTING:
        pass
    for process in browser:
        process.resume()


def _ranks_share() -> float:
    """Return how many cores all that the kernel has started keeps busy, for a second from now."""
    started = _kernel().children(recursive=True)
    before = {process.pid: _cpu_s(process) for process in started}
    time.sleep(1)
    took = 0.0
    for process in started:
        with suppress(psutil.NoSuchProcess):
            took += _cpu_s(process) - before[process.pid]
    return took


def _printed(page: Any, cell: int) -> float:
    """Return the milliseconds that a cell prints, and clear its output."""
    output = page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-OutputArea-output")
    output.get_by_text("ms:").wait_for(timeout=LONG_MS)
    value = float(output.inner_text().split()[-1])
    do(page, "notebook:clear-cell-output")
    return value


def _kernel() -> psutil.Process:
    """Return the newest kernel of this machine."""
    found = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if "ipykernel_launcher" in process.info["cmdline"]
    ]
    return max(found, key=lambda process: process.info["create_time"])


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def memory(minutes: float) -> None:
    """Print what the browser's page holds after minutes of a run that streams."""
    with notebook(OPEN.format(steps=1_000_000)) as page:
        page.locator(".wb-train").click()
        says(page, "Training with data=2", LONG_MS)
        page.locator(".wb-charts").first.scroll_into_view_if_needed()
        watch = page.context.new_cdp_session(page)
        print("minute  heap in MB, after a collection  renderer in MB")
        for minute in range(int(minutes) + 1):
            page.wait_for_timeout(60_000)
            watch.send("HeapProfiler.collectGarbage")
            heap = watch.send("Runtime.getHeapUsage")["usedSize"] / 1e6
            print(f"{minute:>6}  {heap:>10.1f}  {_renderer_bytes() / 1e6:>10.1f}", flush=True)
        press(page, "Stop")
        says(page, "Stopped after", LONG_MS)


def _renderer_bytes() -> int:
    """Return what the largest renderer of Chromium holds by itself."""
    return max(
        process.memory_info().rss - process.memory_info().shared
        for process in psutil.process_iter(["cmdline"])
        if "--type=renderer" in (process.info["cmdline"] or ())
    )


def timeline(repeats: int) -> None:
    """Print how long a browser takes to draw a step of very many spans, and to move it."""
    chart = timeline_chart()
    columns = timeline_columns(Timeline("data=8", 0, tuple(_bars())))
    chart.draw(columns)
    seen, whole = dict(chart.source.data), dict(chart.whole.data)
    chart.draw(timeline_columns(None))
    drawn, frames = [], []
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "timeline.html")
        path.write_text(file_html(chart.figure, INLINE, "timeline"))
        for _ in range(repeats):
            page = browser.new_page(viewport={"width": 1280, "height": 400})
            page.goto(path.as_uri())
            page.locator("canvas").first.wait_for(timeout=LONG_MS)
            page.wait_for_timeout(1_000)
            drawn.append(page.evaluate(DRAW, [seen, whole]) / 1e3)
            page.wait_for_timeout(1_000)
            frames += _moved(page)
            page.close()
    _tell(f"{RANKS} ranks × {SPANS} spans, drawn, s", drawn)
    _tell("a frame while it is zoomed and moved, ms", frames)


def _bars() -> Iterator[Bar]:
    dice = random.Random(1)
    for rank in range(RANKS):
        at_s = 0.0
        for n in range(SPANS):
            stop_s = at_s + dice.expovariate(1 / 50e-6)
            yield Bar(rank, KINDS[n % 3], f"layer{n % 40}", at_s, stop_s, 0)
            at_s = stop_s


def _moved(page: Any) -> list[float]:
    """Zoom and move with the mouse; return how long the frames took, in milliseconds."""
    box = page.locator("canvas").first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.evaluate("() => { window.at = []; const look = now => { window.at.push(now); "
                  "requestAnimationFrame(look) }; requestAnimationFrame(look) }")  # fmt: skip
    for _ in range(10):
        page.mouse.wheel(0, -200)
        page.wait_for_timeout(50)
    page.mouse.down()
    for turn in range(30):
        page.mouse.move(middle[0] + 5 * turn, middle[1])
        page.wait_for_timeout(16)
    page.mouse.up()
    at = page.evaluate("() => window.at")
    return [after - before for before, after in itertools.pairwise(at)]


def _tell(what: str, values: list[float]) -> None:
    print(f"{what}: {median(values):.2f} ({min(values):.2f}-{max(values):.2f}, {len(values)})",
          flush=True)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=("live", "memory", "timeline"))
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--minutes", type=float, default=30)
    asked = options.parse_args()
    print(describe())
    if asked.what == "live":
        live(asked.repeats, asked.steps)
    elif asked.what == "memory":
        memory(asked.minutes)
    else:
        timeline(asked.repeats)


if __name__ == "__main__":
    main()
