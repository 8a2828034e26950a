"""Errors within the panel: told in a sentence, and everything else goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from panel_fakes import shown, until

from workbench.ui import driver, language, shelf, state, view
from workbench.ui.guard import Guard

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
        (view.table, "rows_table"),
        (view, "cost_table"),
        (view, "memory_columns"),
        (view.figures, "speedup_columns"),
        (view.PlanView, "show"),
        (view.Keep, "show"),
        (view.Controls, "show"),
        (view.pictures, "strip"),
        (state, "findings"),
        (state, "fits"),
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
