"""What a person does with the panel, and reads off it."""

from __future__ import annotations

from typing import Any

LIMIT_MS = 120_000
"""For what needs many runs; a machine with other work to do is slow, and not broken."""

SOON_MS = 20_000
"""For what the panel answers by itself."""


def column(figure: str, name: str) -> str:
    """Return as JavaScript: a column of a figure's data, in every view of it that there is.

    Views that nobody looks at keep what they were sent, so every one of them is asked.
    """
    return f"""() => Bokeh.documents.flatMap(document => Array.from(
        document.get_model_by_name("wb-{figure}")?.data["{name}"] ?? []))"""


NOTEBOOK = "jupyterapp.shell.currentWidget"
KERNEL = f"{NOTEBOOK}?.sessionContext?.session?.kernel?.status"
POINTS = column("speedup", "cores")
SAVED = "() => !document.querySelector('.lm-DockPanel-tabBar .jp-mod-dirty')"


def open_panel(page: Any, address: str) -> None:
    """Open a notebook, run its first cell, and wait for the panel."""
    page.goto(address)
    page.wait_for_function(f"() => window.jupyterapp && {KERNEL} === 'idle'", timeout=60_000)
    run_cell(page, 0)
    page.locator(".wb-run").wait_for(timeout=60_000)


def run_cell(page: Any, number: int) -> None:
    """Run one cell of the notebook."""
    page.evaluate(f"() => {{ {NOTEBOOK}.content.activeCellIndex = {number} }}")
    do(page, "notebook:run-cell")


def press(page: Any, name: str) -> None:
    """Press one of the panel's buttons."""
    page.locator(".wb-buttons").get_by_role("button", name=name).click()


def says(page: Any, text: str, timeout_ms: float = LIMIT_MS) -> None:
    """Wait until the panel's message has a text."""
    page.locator(".wb-message").get_by_text(text).first.wait_for(timeout=timeout_ms)


def set_number(page: Any, control: str, value: float) -> None:
    """Type a number into a control."""
    box = page.locator(f".wb-{control} input")
    box.fill(str(value))
    box.press("Tab")


def unfold(page: Any, title: str) -> None:
    """Open one of the folds."""
    page.locator(".wb-fold summary", has_text=title).first.click()


def save(page: Any) -> None:
    """Save the notebook, and wait until it is."""
    do(page, "docmanager:save")
    page.wait_for_function(SAVED, timeout=30_000)


def do(page: Any, command: str) -> None:
    """Carry out one of JupyterLab's commands, as a menu does."""
    page.evaluate(f"() => {{ jupyterapp.commands.execute('{command}') }}")
