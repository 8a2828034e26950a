"""Take the pictures of docs/what-you-see.md, each state of the panel once; run by hand.

    python tests/browser/pictures.py [--only running failed] [--folder docs]

Starts JupyterLab, drives it in headless Chromium at 1280 pixels, and writes small PNGs. Close
everything else that uses the machine: the numbers in the pictures are measured.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout, wherever this is run from

from hands import open_panel, press, run_cell, says, set_number
from PIL import Image
from served import chromium, served, write_notebook

from workbench.ui.lab import lab_command

LIMIT_MS = 400_000
WIDTH_PX, HEIGHT_PX = 1280, 3000
MOST_BYTES = 200_000
COLOURS = (256, 128, 64)

PANEL = "import workbench as wb\n\nwb.app(compare=['tensor=2'], batch=64, steps={steps})"
KILL = """import os, signal
from workbench.cluster.lab import current_lab
for worker in current_lab().client.run(os.getpid).values():
    os.kill(worker, signal.SIGKILL)"""
CLOSE = """from workbench.cluster.lab import current_lab
current_lab().close()"""
DASHBOARD = """from workbench.cluster.lab import current_lab
print(current_lab().dashboard_link)"""


class Camera:
    """Writes pictures of a page into a folder."""

    def __init__(self, page: Any, folder: Path, only: Sequence[str]) -> None:
        self.page, self._folder, self._only = page, folder, only

    def take(self, name: str, upto: str | None = None, above: str | None = None) -> None:
        """Write the panel as ``see-NAME.png``: all, or up to the end of one part, or above one."""
        if self._only and name not in self._only:
            return
        page = self.page
        page.mouse.move(0, 0)
        page.locator(".wb-panel").evaluate("panel => panel.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(700)  # figures are painted, tips are gone
        box = page.locator(".wb-panel").bounding_box()
        bottom = box["y"] + box["height"]
        if upto is not None:
            last = page.locator(upto).last.bounding_box()
            bottom = last["y"] + last["height"] + 8
        if above is not None:
            bottom = page.locator(above).first.bounding_box()["y"] - 4
        edge = 6
        clip = {"x": box["x"] - edge, "y": box["y"], "width": box["width"] + 2 * edge}
        self._write(name, page.screenshot(clip={**clip, "height": bottom - box["y"]}))

    def take_part(self, name: str, which: str) -> None:
        """Write one part of the panel."""
        if not self._only or name in self._only:
            self.page.wait_for_timeout(700)
            self._write(name, self.page.locator(which).first.screenshot())

    def take_page(self, page: Any, name: str) -> None:
        """Write all of another page."""
        if not self._only or name in self._only:
            self._write(name, page.screenshot(full_page=True))

    def _write(self, name: str, png: bytes) -> None:
        image = Image.open(io.BytesIO(png)).convert("RGB")
        for colours in COLOURS:
            out = io.BytesIO()
            # Every colour that means something is kept, however little of it there is.
            few = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(out, "PNG", optimize=True)
            if len(out.getvalue()) <= MOST_BYTES:
                break
        path = self._folder / f"see-{name}.png"
        path.write_bytes(out.getvalue())
        print(f"{path}: {image.width} × {image.height}, {len(out.getvalue()) / 1000:.0f} kB")


def shoot(address: str, context: Any, camera: Camera) -> None:
    """Go through all states in one notebook."""
    page = camera.page
    open_panel(page, address)
    page.keyboard.press("Escape")
    page.keyboard.press("Control+b")  # the panel has the width of the window
    page.get_by_text("1,438 samples").wait_for(timeout=60_000)
    camera.take("before", ".wb-chart-loss")

    press(page, "Run")
    says(page, "repeat 2 of 3", LIMIT_MS)
    camera.take("running", ".wb-chart-loss")
    press(page, "Pause")
    says(page, "Paused", LIMIT_MS)
    camera.take("paused", above=".wb-charts")
    press(page, "Go on")
    says(page, "Done", LIMIT_MS)
    camera.take("done")

    page.locator(".wb-plan summary").first.click()
    page.locator(".wb-plan svg").wait_for(timeout=LIMIT_MS)
    camera.take_part("cut", ".wb-plan")
    page.locator(".wb-plan summary").first.click()

    page.locator(".wb-language button").nth(1).click()
    says(page, "完成", LIMIT_MS)
    camera.take("chinese", ".wb-chart-loss")
    page.locator(".wb-language button").nth(0).click()
    says(page, "Done", LIMIT_MS)

    with_theme(page, "JupyterLab Dark")
    camera.take("dark", ".wb-chart-loss")
    with_theme(page, "JupyterLab Light")

    run_cell(page, 3)
    link = page.locator(".jp-OutputArea-output", has_text="/status").last
    link.wait_for(timeout=LIMIT_MS)
    dashboard = context.new_page()
    dashboard.set_viewport_size({"width": WIDTH_PX, "height": 1200})
    dashboard.goto(link.inner_text().strip().replace("/status", "/workbench"))
    dashboard.locator("canvas").first.wait_for(timeout=LIMIT_MS)
    dashboard.wait_for_timeout(3_000)
    camera.take_page(dashboard, "dashboard")
    dashboard.close()

    set_number(page, "steps", 3000)
    press(page, "Run")
    says(page, "repeat 1 of 3", LIMIT_MS)
    page.wait_for_timeout(3_000)
    press(page, "Stop")
    says(page, "Stopped after", LIMIT_MS)
    camera.take("stopped", ".wb-chart-loss")

    press(page, "Run")
    says(page, "repeat 1 of 3", LIMIT_MS)
    run_cell(page, 1)
    says(page, "Failed", LIMIT_MS)
    camera.take("failed", ".wb-trouble")

    run_cell(page, 2)
    page.locator(".wb-trouble button:visible").wait_for(timeout=LIMIT_MS)
    camera.take("gone", ".wb-trouble")


def with_theme(page: Any, theme: str) -> None:
    """Change JupyterLab's theme, as its menu does."""
    page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
    light = "true" if theme.endswith("Light") else "false"
    page.locator(f"body[data-jp-theme-light={light}]").wait_for(timeout=LIMIT_MS, state="attached")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "docs")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--only", nargs="*", default=[])
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as made, chromium() as browser:
        root = Path(made)
        books, own = root / "notebooks", root / "own"
        books.mkdir()
        own.mkdir()
        cells = (PANEL.format(steps=asked.steps), KILL, CLOSE, DASHBOARD)
        name = write_notebook(books / "pictures.ipynb", *cells)
        command = lab_command(books, port=0, browser=False, notebook=name)
        command.append("--LabApp.expose_app_in_browser=True")
        with served(command, own, r"http://127\.0\.0\.1:\d+/\S*\?token=\w+") as address:
            context = browser.new_context(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
            shoot(address, context, Camera(context.new_page(), asked.folder, asked.only))
            context.close()


if __name__ == "__main__":
    main()
