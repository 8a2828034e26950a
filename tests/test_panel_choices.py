"""The panel with a comparison that computes nothing: what is picked, kept, guessed and told."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from panel_fakes import FakeLab, shown, until
from sentences import errors_of
from test_attaching import SUMMARY, going_on, step

import workbench
from workbench.errors import PlanError, RunError
from workbench.records import RunFolder
from workbench.ui import form, panel, training
from workbench.ui.lab import CONFIG, START, lab_command, launch_lab, place_notebooks
from workbench.ui.state import AT_ONCE

pytestmark = pytest.mark.timeout(60)

RUN_PY = Path(workbench.__file__).with_name("run.py")


def test_choosing_a_workload_sets_batch_and_steps_that_suit_it(opened):
    assert opened._view.request().batch == 32  # as preset
    opened._view.controls.fields["workload"].value = "digits-mlp"
    until(lambda: opened._view.request().steps == 40, "the suggestion")


def test_another_seed_does_not_have_every_choice_tried_again(opened):
    asked = opened._view.request()
    assert replace(asked, seed=7).basis == asked.basis
    assert replace(asked, batch=7).basis != asked.basis


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
    actions = made._view.actions
    starts = (actions.run, actions.sweep, actions.train)
    until(lambda: all(button.disabled for button in starts), "the wait for a guess")
    actions.guess.value = 3.0
    actions.lock.click()
    until(lambda: not any(button.disabled for button in starts), "the end of the wait")
    speedup = made._view._charts[0].source
    until(lambda: speedup.data["speedup"] == [3.0], "the mark")
    made.run()
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")
    said = made._view.actions._verdict
    until(lambda: "You guessed 3.00×, and data=2 measured 2.00×" in said.value, "the score")
    assert "50% too high" in said.value
    # What is known is no guess: another one is about the next run.
    actions.lock.click()
    until(lambda: all(button.disabled for button in starts), "the wait for another guess")
    actions.guess.value = 2.0
    actions.lock.click()
    until(lambda: "Locked for data=2" in said.value, "the lock")
    made.run()
    until(lambda: len(rooms.compared) == 2, "the second comparison")
    assert "Locked for data=2" in said.value
    rooms.compared[1][-1].go_on("done")
    until(lambda: "Well guessed!" in said.value, "the second score")
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
            work=work, plan=SimpleNamespace(strategy=strategy, ranks=1), threads=1,
            status="running", history=[], spans=[], label=strategy, first_step=0, step=0,
            steps=12, eta_s=None,
            kept={"all": 1}, error=None, preview=None, accuracy=None,
            peak_memory_bytes=(), predicted_memory_bytes=(),
            lab=SimpleNamespace(closed=False, crowded_by=lambda threads: False),
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


def test_the_link_to_the_dashboard_carries_the_language(opened, rooms):
    assert "href" not in opened._view._place.value
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    link = 'href="http://127.0.0.1:8787/workbench?lang='
    until(lambda: f'{link}en"' in opened._view._place.value, "the link")
    opened.speak("zh")
    until(lambda: f'{link}zh"' in opened._view._place.value, "the language")
    rooms.compared[0][-1].go_on("done")
    rooms.labs[0].close()
    until(lambda: "href" not in opened._view._place.value, "the end of the link")


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


def test_a_run_that_goes_on_elsewhere_is_followed_and_blocks_nothing(opened, rooms, tmp_path):
    folder = RunFolder.create(tmp_path, "one")
    folder.write_summary(SUMMARY)
    opened.attach(str(folder.path))
    elsewhere = "Followed; started elsewhere"
    until(lambda: f"{elsewhere}: Starting, 0 of 50" in shown(opened), "the run")
    folder.add([step(n) for n in range(1, 11)], [], ranks=2)
    until(lambda: f"{elsewhere}: Running, 10 of 50" in shown(opened), "its steps")
    until(lambda: opened.state.curves, "its curve")
    assert opened._view.actions.pause.disabled
    assert not opened._view.actions.run.disabled
    assert not opened._view.actions.stop.disabled
    opened.pause()
    opened.stop()
    until(lambda: "only that can stop it: press Stop" in shown(opened), "where to stop it")
    folder.finish(SUMMARY | {"status": "done"}, [step(n) for n in range(1, 12)], [])
    until(lambda: "From a folder: Done, 11 of 50" in shown(opened), "its end")
    assert opened._view.actions.stop.disabled
    opened.attach(str(going_on(tmp_path, "two").path))
    until(lambda: elsewhere in shown(opened), "another")
    opened.run()  # is not held up by what goes on elsewhere
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")


def test_chosen_earlier_runs_stand_side_by_side(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, (strategy, ranks) in enumerate((("serial", 1), ("data=2", 2), ("data=4", 4))):
        folder = RunFolder.create("workbench-runs", f"2026-0{n + 1}-{strategy}")
        rows = [step(k) | {"step_s": 0.08 / (n + 1)} for k in range(1, 11)]
        told = SUMMARY | {"strategy": strategy, "ranks": ranks, "status": "done"}
        folder.finish(told, rows, [])
    keep = opened._view.keep
    until(lambda: len(keep._earlier.options) == 3, "the list")
    assert keep._earlier.options[0] == "2026-03-data=4"  # the newest first
    keep._earlier.value = keep._earlier.options
    keep._compare.click()
    until(lambda: len(opened.state.points) == 3, "the points")
    speedups = {row["strategy"]: round(row["speedup"], 6) for row in opened.state.points}
    assert speedups == {"serial": 1.0, "data=2": 2.0, "data=4": 3.0}
    assert opened.state.found == ()
    assert [curve.label for curve in opened.state.curves][1:] == ["data=2", "data=4"]
    keep._earlier.value = keep._earlier.options[:2]
    keep._compare.click()
    until(lambda: "no speedup is known" in shown(opened), "the caution")
    until(lambda: "data=4" in opened._view._table.value, "the table")


def test_a_cluster_that_is_gone_is_told_with_a_button_to_start_another(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    broke = "Rank 1 is gone. Kept: the records of no step, in x; the cluster can be used at once."
    assert AT_ONCE in broke
    assert any(AT_ONCE in said for _, said in errors_of(RUN_PY))
    rooms.compared[0][-1].error = RunError(broke)
    rooms.compared[0][-1].go_on("failed")
    until(lambda: broke in shown(opened), "the end")
    rooms.labs[0].close()
    until(lambda: "The cluster is gone" in shown(opened), "the sentence")
    assert "the records of no step, in x." in shown(opened)
    assert "at once" not in shown(opened)
    opened.speak("zh")
    until(lambda: "集群不在了" in shown(opened), "the sentence in Chinese")
    assert "的记录，在 x。" in shown(opened)
    opened.speak("en")
    until(lambda: "The cluster is gone" in shown(opened), "the sentence in English")
    cluster = opened._view.actions.cluster
    until(lambda: cluster.layout.display != "none", "the button")
    rooms.gate = threading.Event()
    cluster.click()
    until(lambda: "Starting a cluster" in shown(opened), "the start of another")
    assert cluster.layout.display == "none"
    assert "The cluster is gone" not in shown(opened)
    rooms.gate.set()
    until(lambda: len(rooms.labs) == 2 and len(rooms.compared) == 2, "the new cluster")
    rooms.compared[1][-1].go_on("done")


def test_a_given_cluster_that_lost_its_workers_is_told_too(rooms):
    lab = FakeLab(2)
    made = panel.app(lab=lab, workers=2, batch=32, steps=12)
    lab.hosts = []
    made.run()
    until(lambda: "The cluster is gone" in made._view.controls.notes["workers"].value, "the word")
    cluster = made._view.actions.cluster
    until(lambda: cluster.layout.display != "none", "the button")
    cluster.click()
    until(lambda: len(rooms.labs) == 1 and rooms.compared, "the new cluster")
    rooms.compared[0][-1].status = "done"
    made.close()


@pytest.mark.parametrize("shown_before", [False, True])
def test_a_cluster_is_started_where_nothing_was_run_yet(rooms, tmp_path, shown_before):
    lab = FakeLab(2)
    made = panel.app(lab=lab, workers=3, batch=32, steps=12)
    if shown_before:
        made.attach(str(going_on(tmp_path, "one").path))
        until(lambda: "Followed" in shown(made), "the earlier run")
    lab.close()
    cluster = made._view.actions.cluster
    until(lambda: cluster.layout.display != "none", "the button")
    assert "The cluster is gone" in shown(made)
    rooms.gate = threading.Event()
    cluster.click()
    until(lambda: "Starting a cluster of 3 workers" in shown(made), "the start")
    assert cluster.layout.display == "none"
    rooms.gate.set()
    until(lambda: [len(lab.hosts) for lab in rooms.labs] == [3], "the cluster")
    until(lambda: "Starting a cluster" not in shown(made), "the end of the start")
    assert not rooms.compared
    rooms.labs[0].close()
    until(lambda: cluster.layout.display != "none", "the button again")
    rooms.no_start = "There is no port left."
    cluster.click()
    until(lambda: rooms.no_start in made._view._broken.value, "why there is none")
    made.close()


@pytest.mark.parametrize("typed", ["many", "--5", "²", "1e3", "-", "9" * 5000])
def test_a_wrong_option_is_told_where_it_is_seen(opened, typed):
    opened._view.controls.options["accumulate"].value = typed
    until(lambda: "Micro-batches is" in opened._view.controls.notes["accumulate"].value, "the word")
    assert opened._thread.is_alive()
    opened._view.controls.options["accumulate"].value = "2"
    assert opened._view.request().accumulate == 2


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
    bundle = opened._repr_mimebundle_()
    # What a page on the web and a front end without widgets choose instead of the widgets.
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} <= {*bundle}
    assert "2.00×" in bundle["text/html"]
    assert "<table" in bundle["text/html"]
    assert bundle["text/html"].count("<svg") == 1
    assert "Measured speedup" in bundle["text/html"].partition("<svg")[2]
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
