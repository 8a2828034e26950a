"""The panel with a comparison that computes nothing: threads, states, words."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_comparison import FakeComparison

from workbench.errors import PlanError, RunError
from workbench.strategies.notation import parse
from workbench.ui import driver, form, panel, shared_lab, training
from workbench.ui.lab import CONFIG, START, lab_command, launch_lab, place_notebooks
from workbench.ui.widget import all_of

pytestmark = pytest.mark.timeout(60)


class FakeWork:
    """A workload as far as the panel looks at it."""

    def __init__(self, name="net", batch_size=32):
        self.name, self.batch_size, self.steps = name, batch_size, 40
        self.samples, self.sample_shape, self.seed = 1000, (1, 32, 32), 0

    def with_(self, batch_size=None, seed=0):
        changed = FakeWork(self.name, batch_size or self.batch_size)
        changed.seed = seed
        return changed


class FakeLab:
    def __init__(self, workers):
        self.hosts, self.closed = [None] * workers, False

    def hosts_for(self, ranks):
        if ranks > len(self.hosts):
            raise PlanError(f"{ranks} ranks need {ranks} workers.")

    def close(self):
        self.closed = True


@pytest.fixture
def rooms(monkeypatch):
    """Put fakes where the driver meets the other rooms, and keep what they were asked for."""
    seen = SimpleNamespace(labs=[], compared=[], threads=set(), refuse=None, gate=None)

    def plan(work, strategy, **options):
        if seen.refuse is not None and strategy != "serial":
            raise PlanError(seen.refuse)
        return SimpleNamespace(ranks=parse(strategy).size)

    def start(workers):
        seen.threads.add(threading.current_thread().name)
        if seen.gate is not None:
            assert seen.gate.wait(20)
        seen.labs.append(FakeLab(workers))
        return seen.labs[-1]

    def compare(work, strategies, **options):
        seen.threads.add(threading.current_thread().name)
        seen.compared.append((work, strategies, options, FakeComparison(work)))
        return seen.compared[-1][-1]

    def no_lab():
        raise PlanError("No cluster is open.")

    monkeypatch.setattr(driver, "plan", plan)
    monkeypatch.setattr(driver, "compare", compare)
    monkeypatch.setattr(shared_lab, "start", start)
    monkeypatch.setattr(shared_lab, "current_lab", no_lab)
    monkeypatch.setattr(driver, "workload", FakeWork)
    return seen


@pytest.fixture
def opened(rooms):
    made = panel.app(workers=2, batch=32, steps=12)
    yield made
    made.close()


def until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within 20 s"
        time.sleep(0.01)


def shown(made):
    """Return everything that the widgets say, as one text."""
    view = made._view
    texts = [view.actions.message, view._place, view._result, view._table, view._python]
    notes = view.controls.notes.values()
    return "\n".join(widget.value for widget in (*texts, view._problem, *notes))


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


def test_stop_is_called_by_the_driver_and_keeps_what_was_measured(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    comparison.go_on()
    opened._view.actions.stop.click()
    assert opened.wait(10).status == "stopped"
    until(lambda: "Stopped after 90 of 90 steps" in shown(opened), "the word")
    assert comparison.stopped_on == ["panel driver"]
    until(lambda: "data=2" in opened._view._table.value, "the table")


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
    assert opened.driver._thread.is_alive()


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
    assert not {"panel", "panel driver"} & {thread.name for thread in threading.enumerate()}


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
    comparison.status = "done"


def test_an_own_workload_comes_first_and_is_named_in_the_python_line(rooms):
    made = panel.app(work=FakeWork("<mine>", 16), steps=12)
    assert made._view.request() == form.Request(form.OWN, (("data", "2"),), 2, 16, 12)
    assert "work.with_(batch_size=16)" in shown(made)
    made.run()
    until(lambda: rooms.compared, "the comparison")
    assert rooms.compared[0][0].name == "<mine>"
    made.close()


def test_choosing_a_workload_sets_batch_and_steps_that_suit_it(opened):
    assert opened._view.request().batch == 32  # as preset
    opened._view.controls.fields["workload"].value = "digits-mlp"
    until(lambda: opened._view.request().steps == 40, "the suggestion")


def test_any_hybrid_is_picked_with_its_options_and_compared_with_others(rooms):
    made = panel.app(
        strategy="data=2,spatial=2x2", compare=["tensor=4"], threads=1, seed=3, schedule="gpipe"
    )
    asked = made._view.request()
    assert asked.strategies == ["serial", "tensor=4", "data=2,spatial=2x2"]
    assert (asked.workers, asked.threads, asked.seed) == (8, 1, 3)
    made.run()
    until(lambda: rooms.compared, "the comparison")
    work, strategies, options, comparison = rooms.compared[0]
    assert strategies == asked.strategies
    assert (work.seed, options["threads"], options["schedule"]) == (3, 1, "gpipe")
    assert made._view.controls.options["precision"].disabled is False
    assert made._view.controls.options["stage"].disabled  # sharded is not in use
    comparison.status = "done"
    made.close()


def test_degrees_that_cannot_be_are_marked_with_the_reason(rooms):
    rooms.refuse = "There is <nothing> to cut."
    opened = panel.app(workers=2)
    axis = opened._view.controls.axes["tensor"]
    until(lambda: ("2 ✗", "2") in axis.options, "the mark")
    assert "There is &lt;nothing&gt; to cut." in opened._view.controls._impossible.value
    assert axis.value == "1"
    opened.close()


def test_a_guess_is_drawn_and_scored_when_its_strategy_is_measured(rooms):
    made = panel.app(workers=2, batch=32, steps=12, predict_first=True)
    until(lambda: made._view.actions.run.disabled, "the wait for a guess")
    made._view.actions.guess.value = 3.0
    made._view.actions.lock.click()
    speedup = made._view._charts[0].source
    until(lambda: speedup.data["speedup"] == [3.0], "the mark")
    made.run()
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")
    said = made._view.actions._verdict
    until(lambda: "You guessed 3.00×, and data=2 measured 2.00×" in said.value, "the score")
    assert "50% too high" in said.value
    made.close()


def test_pause_and_step_tell_what_runs(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    comparison = rooms.compared[0][-1]
    actions = opened._view.actions
    until(lambda: not actions.pause.disabled, "the button")
    actions.pause.click()
    until(lambda: "Paused: data=2, repeat 1 of 3" in shown(opened), "the pause")
    assert actions.pause.description == "Go on"
    actions.step.click()
    until(lambda: comparison.told == ["pause", "advance"], "the step")
    actions.pause.click()
    until(lambda: comparison.told[-1] == "resume", "the end of the pause")
    comparison.status = "done"


def test_train_goes_on_with_the_same_weights_under_another_strategy(opened, rooms, monkeypatch):
    begun = []

    def run(work, strategy, **options):
        begun.append((strategy, options["start"]))
        kept = SimpleNamespace(
            work=work, plan=SimpleNamespace(strategy=strategy), threads=1, status="running",
            history=[], spans=[], label=strategy, first_step=0, step=0, steps=12, eta_s=None,
            kept={"all": 1}, error=None, preview=None, accuracy=None,
            lab=SimpleNamespace(closed=False),
        )  # fmt: skip
        kept.stop = lambda: setattr(kept, "status", "stopped")
        return kept

    monkeypatch.setattr(training, "run", run)
    opened.train()
    until(lambda: begun, "the training")
    first = opened.training.run
    opened._view.controls.axes["data"].value = "1"
    until(lambda: "Go on with serial" in opened._view.actions.train.description, "the word")
    opened._view.actions.train.click()  # in the midst of the run: it ends, and the next begins
    until(lambda: len(begun) == 2, "the second run")
    assert begun == [("data=2", None), ("serial", first)]
    assert first.status == "stopped"
    opened.training.run.status = "done"
    opened.wait(10)
    opened.driver.start_over()
    opened.train()
    until(lambda: len(begun) == 3, "the third run")
    assert begun[2] == ("serial", None)
    opened.training.run.status = "done"


def test_the_panel_changes_its_language_and_back(opened, rooms):
    opened.speak("zh")
    until(lambda: "准备就绪" in shown(opened), "Chinese")
    assert opened._view.actions.run.description == "运行"
    assert opened._view._charts[0].figure.title.text == "实测加速比（越高越好）"
    opened._view.controls.fields["batch"].value = 0
    opened.run()
    until(lambda: "批大小是 0" in shown(opened), "the sentence")
    opened.speak("en")
    until(lambda: "Batch is 0" in shown(opened), "English")


def test_a_share_code_restores_all_controls_and_a_forged_one_is_refused(opened, rooms):
    other = panel.app(workload="digits-mlp", strategy="pipeline=3", schedule="zb-h1", seed=5)
    code = other.code
    other.close()
    opened.restore(code)
    asked = opened._view.request()
    assert (asked.workload, asked.strategy, asked.seed) == ("digits-mlp", "pipeline=3", 5)
    assert dict(asked.options) == {"schedule": "zb-h1"}
    opened.restore("wb1:forged")
    until(lambda: "damaged" in opened._view.keep._said.value, "the sentence")
    assert opened._view.request() == asked


def test_what_was_measured_before_is_shown_and_written(opened, rooms, tmp_path):
    opened.export(str(tmp_path))
    until(lambda: "nothing to write yet" in opened._view.keep._said.value, "the sentence")
    opened.attach(str(tmp_path / "<none>"))
    until(lambda: "&lt;none&gt;" in opened._view.keep._said.value, "the escaped path")
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    document = rooms.compared[0][-1]
    document.go_on("done")
    opened.wait(10)
    file = tmp_path / "told.json"
    file.write_text(json.dumps(document.to_json() | {"status": "done", "error": None}))
    opened.attach(str(file))
    until(lambda: "From a folder: Done" in shown(opened), "the old run")
    assert "data=2" in opened._view._table.value


def test_a_cluster_that_is_gone_is_told_with_a_button_to_start_another(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")
    until(lambda: not opened._view.actions.run.disabled, "the end")
    rooms.labs[0].close()
    until(lambda: "The cluster is gone" in shown(opened), "the sentence")
    assert opened._view.actions.cluster.layout.display != "none"
    opened._view.actions.cluster.click()
    until(lambda: len(rooms.labs) == 2 and len(rooms.compared) == 2, "the new cluster")
    rooms.compared[1][-1].go_on("done")


def test_a_given_cluster_that_lost_its_workers_is_told_too(rooms):
    lab = FakeLab(2)
    made = panel.app(lab=lab, workers=2, batch=32, steps=12)
    lab.hosts = []
    made.run()
    until(lambda: "The cluster is gone" in made._view.controls.notes["workers"].value, "the word")
    made._view.actions.cluster.click()
    until(lambda: len(rooms.labs) == 1 and rooms.compared, "the new cluster")
    rooms.compared[0][-1].status = "done"
    made.close()


def test_a_wrong_option_is_told_where_it_is_seen(opened):
    opened._view.controls.options["accumulate"].value = "many"
    until(lambda: "Micro-batches is" in opened._view.controls.notes["accumulate"].value, "the word")
    opened._view.controls.options["accumulate"].value = "2"
    assert opened._view.request().accumulate == 2


def test_a_lesson_hides_and_locks_controls(rooms):
    made = panel.app(hidden=["workload", "compare"], locked=["batch", "strategy"])
    controls = made._view.controls
    on_page = {id(widget) for widget in all_of(made._view.root)}
    assert id(controls.fields["workload"]) not in on_page
    assert controls.fields["batch"].disabled
    assert all(axis.disabled for axis in controls.axes.values())
    made.close()


def test_presets_are_checked_before_anything_starts(rooms):
    for presets, sentence in (
        ({"colour": "red"}, "no control 'colour'"),
        ({"workload": "mnist"}, "workload='mnist' is no workload of the catalogue"),
        ({"workload": ""}, "hand it over"),
        ({"hidden": ["colour"]}, "no control 'colour'"),
        ({"lang": "fr"}, "no language 'fr'; there are: en, zh"),
        ({"schedule": "gpip"}, "schedule='gpip' is not one of its choices"),
        ({"strategy": "data=2,tensor=2", "workers": 2}, "has 4 ranks"),
        ({"strategy": "data=0"}, "degree"),
        ({"strategy": "dta=2"}, "Did you mean 'data'"),
        ({"batch": 2.5}, "batch=2.5 cannot be"),
    ):
        with pytest.raises(PlanError, match=sentence):
            panel.app(**presets)
    asked = form.request(None, {"strategy": "data=3"})
    assert (asked.strategy, asked.workers) == ("data=3", 3)
    assert replace(asked, axes=()).strategies == ["serial"]


def test_without_a_front_end_it_tells_its_state_as_text(opened, rooms, capsys):
    bundle = opened._repr_mimebundle_()
    assert "Ready." in bundle["text/plain"]
    assert "panel.run()" in bundle["text/html"]
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")
    opened.wait(10)
    until(lambda: "data=2 2.00×" in capsys.readouterr().out, "the line")
    assert "2.00×" in opened._repr_mimebundle_()["text/html"]
    opened._ipython_display_()
    assert "Parallel workbench panel" in capsys.readouterr().out


def test_notebooks_are_copied_once_and_never_written_over(tmp_path):
    copy = place_notebooks(tmp_path / "mine")
    notebook = json.loads(copy.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert "Shift+Enter" in "".join(notebook["cells"][0]["source"])
    copy.write_text("changed")
    assert place_notebooks(tmp_path / "mine").read_text() == "changed"


def test_jupyterlab_listens_on_loopback_and_keeps_its_token(tmp_path):
    command = lab_command(tmp_path, port=0, browser=False)
    assert "--ServerApp.ip=127.0.0.1" in command
    assert f"--LabApp.default_url=/lab/tree/{START}" in command
    assert f"--LabApp.extra_labextensions_path={CONFIG / 'labextensions'}" in command
    [script] = CONFIG.rglob("remoteEntry.js")
    assert f'"{START}"' in script.read_text()  # the one notebook that it knows
    assert "--no-browser" in command
    assert not any("token" in part or "password" in part for part in command)
    with pytest.raises(PlanError, match="Port 70000"):
        launch_lab(tmp_path, port=70000)
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="name another folder"):
        place_notebooks(tmp_path / "file")
