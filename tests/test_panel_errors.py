"""Errors within the panel: told in a sentence, and everything else goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from panel_fakes import FakeLab, shown, until

from workbench.errors import PlanError
from workbench.ui import (
    driver,
    lab_in_use,
    language,
    passages,
    placement_page,
    sayings,
    shelf,
    state,
    view,
)
from workbench.ui.guard import Guard
from workbench.ui.panel import app

pytestmark = pytest.mark.timeout(60)


def fails(*_args, **_options):
    raise ZeroDivisionError("nothing to <divide>")


BROKEN = "Something in the panel broke (ZeroDivisionError: nothing to &lt;divide&gt;)"


def runs(made, rooms):
    """Run to the end, which needs both threads of the panel."""
    before = len(rooms.compared)
    made.run()
    until(lambda: len(rooms.compared) > before, "the comparison")
    comparison = rooms.compared[-1][-1]
    comparison.go_on()
    for number, run in enumerate(comparison.runs):
        run.folder = Path(f"run-{number}")
    comparison.status = "done"
    until(lambda: "Done: 90 steps" in shown(made), "the end")
    until(lambda: not made._view.actions.run.disabled, "the button")


@pytest.mark.parametrize("path", ["~no-such-user/there", "a\0b"])
def test_a_path_that_is_none_is_told_and_the_driver_goes_on(opened, rooms, path):
    runs(opened, rooms)
    said = opened._view.keep._said
    for ask in (opened.export, opened.attach):
        ask(path)
        until(lambda: "is no path" in said.value, "the sentence")
        opened.restore("wb1:forged")
        until(lambda: "damaged" in said.value, "another sentence")
    runs(opened, rooms)


@pytest.mark.parametrize(
    ("where", "name", "ask"),
    [
        (shelf, "export", lambda made: made.export("there")),
        (shelf, "attach", lambda made: made.attach("there")),
        (shelf.Earlier, "look", lambda made: None),
    ],
)
def test_no_task_ends_the_driver(opened, rooms, monkeypatch, tmp_path, where, name, ask):
    monkeypatch.chdir(tmp_path)
    runs(opened, rooms)
    with monkeypatch.context() as patched:
        patched.setattr(where, name, fails)
        ask(opened)
        until(lambda: BROKEN in opened._view._broken.value, "the sentence")
        assert "in fails" in opened._view._broken.value  # the traceback
        assert "nothing to <divide>" in opened.state.text
        opened.speak("zh")
        until(lambda: "面板中有一处出错" in opened._view._broken.value, "Chinese")
        opened.speak("en")
        runs(opened, rooms)
    opened.attach("there")  # there is nothing, which is told where it was asked
    opened.export("there")
    until(lambda: not opened._view._broken.value, "the end of the sentence")


def test_a_strategy_that_raises_anything_is_told_beside_it(opened, rooms, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(driver, "plan", fails)
        patched.setattr(driver, "described", fails)
        opened._view.controls.fields["batch"].value = 16
        opened._view.controls.fields["workload"].value = "digits-mlp"
        note = opened._view.controls.notes["strategy"]
        until(lambda: "ZeroDivisionError: nothing to &lt;divide&gt;" in note.value, "the sentence")
        opened.run()
        until(lambda: "The panel could not run this: Zero" in shown(opened), "the sentence")
    opened._view.controls.fields["batch"].value = 32
    runs(opened, rooms)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (view, "why_table"),
        (passages.table, "rows_table"),
        (passages, "costs"),
        (view, "memory_columns"),
        (view.figures, "speedup_columns"),
        (view.PlanView, "show"),
        (view.Keep, "show"),
        (view.Controls, "show"),
        (view.pictures, "strip"),
        (state, "findings"),
        (sayings, "fits"),
    ],
)
def test_no_part_ends_the_drawing_and_the_others_are_shown(opened, rooms, monkeypatch, where, name):
    with monkeypatch.context() as patched:
        patched.setattr(where, name, fails)
        runs(opened, rooms)
        until(lambda: BROKEN in opened._view._broken.value, "the sentence")
        assert opened._thread.is_alive()
    runs(opened, rooms)
    until(lambda: not opened._view._broken.value, "the end of the sentence")
    assert "2.00×" in opened._view._table.value


def test_what_the_guard_knows_is_let_go_of_when_the_task_ends_well():
    guard = Guard()
    for name in ("one", "two"):
        with guard.task(name):
            fails()
    assert list(guard.found) == ["one", "two"]
    with guard.task("one"):
        pass
    assert list(guard.found) == ["two"]
    with language.speaking("en"):
        assert guard.found["two"].sentence.startswith("Something in the panel broke")


def test_a_second_panel_opens_while_the_cluster_of_the_first_starts(opened, rooms):
    rooms.gate = threading.Event()
    opened.run()
    until(lambda: rooms.threads, "the start of the cluster")
    second = []
    opener = threading.Thread(target=lambda: second.append(app(workers=2)))
    opener.start()
    until(lambda: second, "the second panel")
    assert not rooms.gate.is_set()
    opened.close(wait=False)
    rooms.gate.set()
    until(lambda: not opened.driver._tasks.alive, "the end of the first")
    assert not rooms.labs[0].closed  # the second has joined before the first has left
    second[0].close()
    assert rooms.labs[0].closed


def test_nothing_that_draws_waits_for_the_scheduler(opened, rooms, monkeypatch):
    asked, hangs = [], threading.Event()

    def hosts():
        asked.append(threading.current_thread().name)
        assert hangs.wait(50)
        return {"there": 2.0}

    until(lambda: opened.driver.planned is not None, "the first plan")
    monkeypatch.setattr(lab_in_use, "workers_of_lab", hosts)
    monkeypatch.setattr(placement_page, "workers_of_lab", hosts)
    opened._view.controls.fields["batch"].value = 16
    until(lambda: asked, "the question")
    opened._view.controls.fields["batch"].value = 0  # is drawn, though there is no answer yet
    note = opened._view.controls.notes["batch"]
    until(lambda: "Batch is 0" in note.value, "the sentence")
    hangs.set()
    until(lambda: opened._view._there == {"there": 2.0}, "the answer")
    assert set(asked) == {"panel driver"}


def test_the_address_of_the_dashboard_is_asked_for_once(rooms):
    asked = []

    class Lab(FakeLab):
        @property
        def dashboard_link(self):
            asked.append(threading.current_thread().name)
            return "http://127.0.0.1:1/status"

    made = app(lab=Lab(2), workers=2, batch=32, steps=12)
    until(lambda: "127.0.0.1:1/workbench" in made._view._place.value, "the link")
    runs(made, rooms)
    made._view.controls.fields["batch"].value = 16
    runs(made, rooms)
    assert asked == ["panel driver"]
    made.close()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"work": "digits-mlp"}, r"wb.app\(workload='digits-mlp'\)"),
        ({"work": object()}, "takes a wb.Workload, and got object"),
        ({"lab": "tcp://127.0.0.1:1"}, "takes what wb.start"),
        ({"strategy": ["data=2", "tensor=2"]}, "takes one strategy.*compare="),
        ({"strategy": None}, "takes one strategy"),
    ],
)
def test_what_is_not_of_its_kind_is_refused_with_what_to_write(given, says):
    with pytest.raises(PlanError, match=says):
        app(**given)
