"""The panel with a comparison that computes nothing: threads, states, words."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
from panel_fakes import FakeLab, FakeWork, shown, until

from workbench.errors import RunError
from workbench.ui import driver, form, pace, panel, shelf

pytestmark = pytest.mark.timeout(60)


def test_run_goes_from_idle_over_a_cluster_to_a_measured_result(opened, rooms):
    assert "Ready." in shown(opened)
    rooms.gate = threading.Event()
    opened.run()
    until(lambda: "Starting a cluster of 2 workers…" in shown(opened), "the cluster's start")
    rooms.gate.set()
    until(lambda: "about 12 s left" in shown(opened), "the progress")
    work, strategies, options, comparison = rooms.compared[0]
    assert strategies == ["serial", "data=2"]
    assert (work.batch_size, options["steps"], options["repeats"]) == (32, 12, 3)
    assert options["wait"] is False
    speedup = opened._view._charts[0].source
    assert speedup.data["cores"] == []
    comparison.go_on()
    until(lambda: speedup.data["cores"] == [1, 2, 2], "the points")
    assert opened._view.actions.run.disabled
    comparison.status = "done"
    until(lambda: not opened._view.actions.run.disabled, "the end")
    said = shown(opened)
    assert "Same result as serial" in said
    assert "2.00 times as fast as 1 process with 1 thread" in said
    assert "Measured on 2 workers × 1 thread each, CPU" in said
    assert rooms.threads == {"panel driver"}


def test_stop_is_called_on_no_kernel_thread_and_keeps_what_was_measured(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    comparison.go_on()
    opened._view.actions.stop.click()
    assert opened.wait(10).status == "stopped"
    until(lambda: "Stopped after 90 of 90 steps" in shown(opened), "the word")
    assert comparison.stopped_on == ["panel steering"]
    until(lambda: "data=2" in opened._view._table.value, "the table")


@pytest.mark.parametrize("busy", ["an export", "a plan", "a description"])
def test_stop_reaches_what_runs_while_the_driver_is_at_something_else(
    opened, rooms, monkeypatch, busy
):
    begun, gate = threading.Event(), threading.Event()

    def takes_long(*_args, **_options):
        begun.set()
        assert gate.wait(50)
        return str

    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    comparison.go_on()
    fields = opened._view.controls.fields
    if busy == "an export":
        monkeypatch.setattr(shelf, "write", takes_long)
        opened.export("there")
    elif busy == "a plan":
        monkeypatch.setattr(driver, "plan", takes_long)
        fields["batch"].value = 16
    else:
        monkeypatch.setattr(driver, "described", takes_long)
        fields["workload"].value = "digits-mlp"
    until(begun.is_set, "the task")
    opened._view.actions.pause.click()
    until(lambda: comparison.told == ["pause"], "the pause")
    opened._view.actions.stop.click()
    until(lambda: comparison.stopped_on, "the stop")
    until(lambda: "Stopped after 90 of 90 steps" in shown(opened), "the word")
    assert not gate.is_set()  # the driver is at it still
    gate.set()


def test_stop_while_the_cluster_starts_needs_no_waiting_and_keeps_the_cluster(opened, rooms):
    rooms.gate = threading.Event()
    opened.run()
    until(lambda: rooms.threads, "the cluster's start")
    opened.stop()
    assert opened.wait(10).status == "stopped"
    rooms.gate.set()
    opened.run()
    until(lambda: rooms.compared, "the second run")
    assert len(rooms.labs) == 1
    rooms.compared[0][-1].status = "done"


def test_what_earlier_runs_have_measured_is_not_held(opened, rooms):
    held = []
    for _ in range(4):
        opened.run()
        until(lambda: rooms.compared, "the comparison")
        comparison = rooms.compared.pop()[-1]
        comparison.go_on("done")
        held.append(weakref.ref(comparison))
        del comparison
        opened.wait(10)
    until(lambda: [ref() is None for ref in held] == [True] * 3 + [False], "the end of three")
    assert opened.driver.job.number == 4


def test_buttons_only_put_commands_into_the_queue(opened, rooms):
    rooms.gate = threading.Event()
    before = threading.get_ident()
    opened._view.actions.run.click()  # returns although the cluster is still starting
    opened._view.actions.stop.click()
    assert threading.get_ident() == before
    assert not rooms.compared
    rooms.gate.set()


@pytest.mark.parametrize(
    ("control", "value", "sentence"),
    [
        ("batch", 0, "Batch is 0; it is a whole number, 1 or more."),
        ("workers", -1, "Workers is -1; it is a whole number, 1 or more."),
        ("workers", 1, "data=2 has 2 ranks, one for each worker, and Workers is 1"),
        ("steps", 3, "Steps is 3, but the first 3 only warm up"),
    ],
)
def test_a_bad_number_is_told_beside_its_control_and_nothing_starts(
    opened, rooms, control, value, sentence
):
    opened._view.controls.fields[control].value = value
    opened.run()
    until(lambda: sentence in opened._view.controls.notes[control].value, "the sentence")
    assert opened.state.status == "failed"
    assert not rooms.labs
    opened._view.controls.fields[control].value = 8
    until(lambda: sentence not in opened._view.controls.notes[control].value, "the sentence's end")


def test_a_refused_plan_is_told_beside_the_strategy(opened, rooms):
    rooms.refuse = "data=2 asks for <2> replicas."
    opened.run()
    note = opened._view.controls.notes["strategy"]
    until(lambda: "data=2 asks for &lt;2&gt; replicas." in note.value, "the sentence")
    assert not rooms.labs


def test_a_given_cluster_that_is_too_small_is_told_beside_the_workers(rooms):
    made = panel.app(lab=FakeLab(2), workers=4, batch=32, steps=12)
    made.run()
    until(
        lambda: "4 ranks need 4 workers." in made._view.controls.notes["workers"].value,
        "the sentence",
    )
    made.close()


def test_a_run_that_breaks_is_told_with_its_details(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    comparison.error = RunError("Rank 1 was killed.", details="a <trace>")
    comparison.status = "failed"
    note = opened._view._problem
    until(lambda: "Rank 1 was killed." in note.value, "the sentence")
    assert "a &lt;trace&gt;" in note.value


def test_an_unforeseen_error_does_not_end_the_driver(opened, rooms, monkeypatch):
    monkeypatch.setattr(driver, "compare", lambda *_a, **_k: 1 / 0)
    opened.run()
    note = opened._view._problem
    until(lambda: "ZeroDivisionError" in note.value, "the sentence")
    assert opened.driver._tasks.alive


def test_more_workers_than_the_own_cluster_has_start_a_larger_one(opened, rooms):
    for workers in (2, 3, 2):
        opened._view.controls.fields["workers"].value = workers
        opened.run()
        until(lambda: len(rooms.compared) and rooms.compared[-1][1], "the comparison")
        rooms.compared[-1][-1].status = "done"
        opened.wait(10)
        rooms.compared.clear()
    assert [len(lab.hosts) for lab in rooms.labs] == [2, 3]
    assert [lab.closed for lab in rooms.labs] == [True, False]


def test_two_panels_take_turns_on_one_cluster_which_ends_with_the_last(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    second = panel.app(workers=2, batch=32, steps=12)
    second.run()
    until(lambda: "another panel has the workers" in shown(second), "the word about the turn")
    rooms.compared[0][-1].go_on("done")
    until(lambda: len(rooms.compared) == 2, "the second comparison")
    assert "2.00 times as fast" in shown(opened)
    assert "2.00 times as fast" not in shown(second)
    opened.close()
    assert not rooms.labs[0].closed
    second.close()
    assert len(rooms.labs) == 1
    assert rooms.labs[0].closed
    of_panels = {"panel", "panel driver", "panel steering"}
    assert not of_panels & {thread.name for thread in threading.enumerate()}


def test_a_run_that_waits_for_its_turn_can_be_stopped(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    second = panel.app(workers=2, batch=32, steps=12)
    second.run()
    second.stop()
    assert second.wait(10).status == "stopped"
    rooms.compared[0][-1].go_on("done")
    second.close()
    assert len(rooms.compared) == 1


def test_a_cell_that_is_run_again_closes_the_panel_it_had_opened(rooms, monkeypatch):
    monkeypatch.setattr(panel, "_cell", lambda: "a-cell")
    first = panel.app(workers=2)
    second = panel.app(workers=2)
    until(lambda: not first._thread.is_alive(), "the end of the first panel")
    assert second._thread.is_alive()
    second.close()


def test_figures_send_few_messages_and_whole_lists(opened, rooms, monkeypatch):
    sent = []
    for live in opened._view._figures:
        monkeypatch.setattr(live, "send", lambda *message: sent.append(message))
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    comparison.go_on()
    until(lambda: opened._view._charts[4].source.data["label"], "the bars")
    time.sleep(0.6)  # ticks without news
    sent.clear()
    comparison.rows[2]["speedup"] = 1.9
    until(lambda: 1.9 in opened._view._charts[0].source.data["speedup"], "the news")
    time.sleep(0.6)
    assert len(sent) == 3  # header, metadata and content of one patch
    assert not any(len(message) > 1 for message in sent)  # no binary buffers
    # A browser tells of nothing that it works out itself, such as where the axes end.
    figures = [chart.figure for chart in opened._view._charts]
    synced = {part for fig in figures for part in fig.references() if part.syncable}
    assert len(synced) == 1  # which tells that it has drawn
    comparison.status = "done"


def test_what_people_read_is_renewed_less_often_and_at_the_end(opened, rooms, monkeypatch):
    monkeypatch.setattr(pace, "FREE", pace.Pace(0.0, 0.0, 1e9))
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    comparison.go_on()
    speedup = opened._view._charts[0].source
    until(lambda: "data=2" in opened._view._table.value, "the table of what has begun")
    comparison.rows[2]["speedup"] = 1.9
    until(lambda: 1.9 in speedup.data["speedup"], "the point")
    assert "1.90" not in opened._view._table.value
    comparison.status = "done"
    until(lambda: "1.90" in opened._view._table.value, "the table")


def test_an_own_workload_comes_first_and_is_named_in_the_python_line(rooms):
    made = panel.app(work=FakeWork("<mine>", 16), steps=12)
    assert made._view.request() == form.Request(form.OWN, (("data", "2"),), 2, 16, 12)
    assert "work.with_(batch_size=16)" in shown(made)
    made.run()
    until(lambda: rooms.compared, "the comparison")
    assert rooms.compared[0][0].name == "<mine>"
    made.close()
