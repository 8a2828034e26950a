"""The panel where no page shows it, and where a page shows less than all of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from panel_fakes import until

from workbench.ui import panel, presence

ROOT = Path(__file__).parents[1]

FAKES = """
import threading, time
import pytest
from panel_fakes import fake_rooms, until

rooms = fake_rooms(pytest.MonkeyPatch())
import workbench as wb

def run_for(seconds):
    before = len(rooms.compared)
    panel.run()
    until(lambda: len(rooms.compared) > before, "the comparison")
    threading.Timer(seconds, rooms.compared[-1][-1].go_on, ["done"]).start()
"""


def executed(path: Path, monkeypatch, *cells: str) -> list[nbformat.NotebookNode]:
    """Run cells in a kernel as nbclient does, and return them with their outputs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(path)}}
    NotebookClient(book, timeout=60, kernel_name="python3", resources=resources).execute()
    return list(book.cells)


def lines(cell: nbformat.NotebookNode) -> list[str]:
    said = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    return said.splitlines()


@pytest.mark.timeout(120)
def test_a_notebook_that_no_page_shows_prints_its_progress(tmp_path, monkeypatch):
    fakes, shown, waited, answered = executed(
        tmp_path,
        monkeypatch,
        FAKES,
        "panel = wb.app(workers=2, batch=32, steps=12)\npanel",
        "run_for(5)\npanel.wait(30).status",
        # A page that shows the widgets moves the bell.
        "panel._view.presence.root.value = 1\nrun_for(4)\npanel.wait(30).status",
    )
    assert fakes.outputs == []
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown.outputs
    )
    said = lines(waited)
    assert 2 <= len(said) <= 5
    assert "repeat 1 of 3" in said[0]
    assert "Done" in said[-1]
    assert "data=2 2.00×" in said[-1]
    [page] = [o.data for o in waited.outputs if o.output_type == "display_data"]
    assert "<table" in page["text/html"]
    assert "<svg" in page["text/html"]
    assert waited.outputs[-1].data["text/plain"] == "'done'"
    assert [o.output_type for o in answered.outputs] == ["execute_result"]


def test_a_page_that_may_be_busy_is_waited_for_while_it_can_be_heard(monkeypatch):
    """Without subshells a cell that runs is in the way of the page's answer."""
    now_s, asked = [1000.0], []
    monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    loop = SimpleNamespace(call_soon_threadsafe=asked.append)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)

    def after_a_minute(named, busy):
        found = presence.Presence()
        assert found.missing == "page"  # nothing is on any page yet
        found.display(named)
        assert found.missing == ""  # it gets some time
        for _ in range(240):
            now_s[0] += 0.25
            found.ring()
            while asked and not busy:
                asked.pop()()
        while asked:  # the cell ends
            asked.pop()()
        return found

    assert after_a_minute(named=False, busy=True).missing == "page"
    assert after_a_minute(named=True, busy=False).missing == "page"
    found = after_a_minute(named=True, busy=True)
    assert (found.missing, found.nobody) == ("", False)
    found.root.value = 1  # as a page does
    assert found.answered
    now_s[0] += 60
    assert found.missing == "figures"
    found.draw()
    assert found.missing == ""


def test_a_page_that_draws_no_figures_gets_still_ones(opened, rooms, monkeypatch):
    monkeypatch.setattr(presence, "FIGURES_S", 0.2)
    seen, view = opened._view.presence, opened._view
    seen.root.value = 1
    until(lambda: "cannot draw live figures" in view._stills.root.value, "the sentence")
    assert "<svg" not in view._stills.root.value
    assert "wb-unseen" in view._charts_box._dom_classes
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")
    until(lambda: "Measured speedup" in view._stills.root.value, "the figure")
    opened.speak("zh")
    until(lambda: "实测加速比" in view._stills.root.value, "Chinese")
    view._figures[0]._sync_model(None, {"event": "jsevent"}, [])  # a page draws after all
    until(lambda: view._stills.root.value == "", "the live figures")
    assert "wb-unseen" not in view._charts_box._dom_classes


def test_nobody_is_asked_where_the_environment_says_so(monkeypatch):
    monkeypatch.setattr(panel, "get_ipython", lambda: SimpleNamespace(kernel="a kernel"))
    assert panel._in_kernel()
    monkeypatch.setenv("WORKBENCH_NONINTERACTIVE", "1")
    assert not panel._in_kernel()
