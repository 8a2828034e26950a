"""The command ``workbench``: exit codes, sentences, figures, and what an interruption leaves."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_fakes import Comparison, Lab
from click.testing import CliRunner, Result

from workbench.cli import commands
from workbench.errors import RunError
from workbench.records import RunFolder
from workbench.spans import KINDS
from workbench.sweep import candidates

COMMANDS = (
    *("compare", "demo", "doctor", "export", "lab", "report", "run", "share", "sweep", "verify"),
)


@pytest.fixture
def lab(monkeypatch, tmp_path) -> Lab:
    """Put a cluster that starts nothing in place of the real one, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    found = Lab()
    starting = importlib.import_module("workbench.cluster.starting")
    monkeypatch.setattr(starting, "start", found.start)
    return found


@pytest.fixture
def compares(monkeypatch, lab):
    """Return a function that says which comparison the next command will follow."""
    asked: dict[str, Any] = {}

    def expect(comparison: Comparison) -> dict[str, Any]:
        def compare(work: Any, strategies: Any, **options: Any) -> Comparison:
            asked.update(options, strategies=strategies)
            return comparison

        monkeypatch.setattr(importlib.import_module("workbench.compare"), "compare", compare)
        return asked

    return expect


def workbench(*arguments: str) -> Result:
    return CliRunner().invoke(commands, arguments)


def test_help_names_every_command():
    answer = workbench("--help")
    assert answer.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in answer.output
    assert answer.output.count("...") == 1  # only in the line of usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    assert workbench(command, "--help").exit_code == 0


def test_the_command_line_loads_nothing_heavy():
    heavy = ("torch", "dask", "distributed", "bokeh", "numpy", "jupyter_core", "sklearn")
    program = f"import sys, workbench.cli; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == "[]"


def test_demo_shows_machine_figures_finding_and_report(compares, lab):
    asked = compares(Comparison())
    answer = workbench("demo", "--workers", "2", "--steps", "9")
    assert answer.exit_code == 0, answer.output
    assert lab.asked == [{"workers": 2, "threads": 1}]
    assert asked["strategies"] == ("serial", "data=2")
    assert (asked["steps"], asked["repeats"]) == (9, 3)
    for part in (
        "machine",
        "versions",
        "digits-cnn",
        "2 workers × 1 thread",
        "2.00",
        "yes (3e-15)",
    ):
        assert part in answer.stdout
    assert "data=2 takes 40 ms a step, measured: it is 2.00 times as fast" in answer.stdout
    assert "step 0 of 90" in answer.stderr
    assert Path("workbench-demo.html").is_file()
    assert str(Path("workbench-demo.html").absolute()) in answer.stdout
    assert not lab.open


def test_demo_as_json_is_one_document_and_nothing_else(compares):
    compares(Comparison())
    answer = workbench("demo", "--json", "--report", "r.html")
    document = json.loads(answer.stdout)
    assert [r["strategy"] for r in document["rows"]] == ["serial", "serial", "data=2"]
    assert document["finding"]
    assert document["report"] == str(Path("r.html").absolute())


def test_quiet_leaves_the_figures_alone(compares):
    compares(Comparison())
    answer = workbench("demo", "--quiet")
    assert answer.stderr == ""
    assert answer.stdout.startswith("Time per step")
    assert "machine" not in answer.stdout


def test_sweep_times_what_can_be_done_and_names_what_cannot(compares, lab):
    asked = compares(comparison := Comparison())
    comparison.refused = {"pipeline=2": "pipeline=2 asks for more stages than layers."}
    answer = workbench("sweep", "digits-cnn", "--workers", "2", "--steps", "9", "--repeats", "1")
    assert answer.exit_code == 0, answer.output
    assert asked["skip_refused"] is True
    assert asked["strategies"] == tuple(candidates(2))
    assert lab.asked == [{"workers": 2, "threads": None}]
    assert "Cannot be done" in answer.stdout
    assert "asks for more stages than layers" in answer.stdout


def test_compare_tells_what_an_epoch_costs_and_what_amdahl_says(compares):
    asked = compares(Comparison())
    answer = workbench("compare", "digits-cnn", "data=2", "--price-per-worker-hour", "0.5")
    assert answer.exit_code == 0, answer.output
    assert asked["price_per_worker_hour"] == 0.5
    assert "What an epoch costs" in answer.stdout
    assert "data is as fast as ideal or faster at 2 cores." in answer.stdout
    assert "Record: workbench-runs/fake" in answer.stdout


def test_report_reads_what_json_printed(compares):
    compares(Comparison())
    Path("printed.json").write_text(workbench("compare", "digits-mlp", "data=2", "--json").stdout)
    assert workbench("report", "printed.json", "-o", "r.html").exit_code == 0
    assert "data=2" in Path("r.html").read_text()


def test_report_of_the_folder_of_a_run(tmp_path):
    shares = {f"{kind}_s": 0.01 if kind == "compute" else 0.0 for kind in KINDS}
    steps = [{"step": n, "time_s": 0.01 * n, "step_s": 0.01, "loss": 1 / n, "samples_per_s": 12_800}
             | shares for n in range(1, 11)]  # fmt: skip
    summary = {
        "workload": "digits-cnn", "strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu",
        "backend": "shared memory", "batch_size": 128, "seed": 0, "dtype": "float32",
        "status": "done", "error": None, "step_s": 0.01, "bytes_per_step": 10, "accuracy": 0.9,
    }  # fmt: skip
    summary["bubble"] = {
        "measured": 0.13, "by_rank": [0.12, 0.14], "theory": 0.12, "equal_stages": 0.11,
    }  # fmt: skip
    folder = RunFolder.create(tmp_path, "one")
    folder.finish(summary, steps, [])
    answer = workbench("report", str(folder.path), "-o", str(tmp_path / "r.html"))
    assert answer.exit_code == 0, answer.output
    report = (tmp_path / "r.html").read_text()
    assert "10.0 ms" in report
    assert "13 % measured; in theory 12 % with these stages, 11 % with equal ones" in report


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "digits-rnn"), "There is no workload 'digits-rnn'"),
        (("run", "digits-cnn", "--strategy", "magic=2"), "'magic' is not a strategy"),
        (("run", "digits-cnn", "--strategy", "data=0"), "asks for degree 0"),
        (("run", "digits-cnn", "--strategy", "data=4", "--batch", "3"), "batch of 3"),
        (("run", "digits-cnn", "--strategy", "data=2", "--workers", "1"), "give --workers 2"),
        (("run", "digits-cnn", "--strategy", "data=99"), "at most 64 are started"),
        (("run", "digits-cnn", "--steps", "0"), "'--steps'"),
        (("run", "digits-cnn", "--threads", "-1"), "'--threads'"),
        (("compare", "digits-cnn"), "STRATEGY"),
        (("compare", "digits-cnn", "data=2", "--steps", "5"), "use 6 or more"),
        (("compare", "digits-cnn", "data=2", "--repeats", "0"), "'--repeats'"),
        (("demo", "--workload", "nothing"), "There is no workload 'nothing'"),
        (("demo", "--report", "no/such/folder.html"), "a folder that does not exist"),
        (("demo", "--report", "."), "is a folder"),
        (("demo", "--device", "tpu"), "'--device'"),
        (("verify", "digits-cnn", "--strategy", "data=9", "--batch", "8"), "batch of 8"),
        (("report", "nowhere"), "nothing measured at nowhere"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_before_anything_starts(lab, arguments, sentence):
    answer = workbench(*arguments)
    assert answer.exit_code == 2
    assert sentence in answer.stderr
    assert answer.stdout == ""
    assert lab.asked == []
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', "not json"])
def test_report_refuses_other_files(lab, text):
    Path("other.json").write_text(text)
    answer = workbench("report", "other.json")
    assert answer.exit_code == 2
    assert "is not the JSON of a comparison" in answer.stderr


def test_what_broke_is_told_with_its_details(compares, lab):
    compares(Comparison("failed", RunError("Rank 1 was killed.", details="Traceback of rank 1")))
    answer = workbench("compare", "digits-mlp", "data=2")
    assert answer.exit_code == 1
    assert answer.stderr.endswith("Traceback of rank 1\nError: Rank 1 was killed.\n")
    assert not lab.open


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_stops_the_runs_and_closes_the_cluster(compares, lab, number, code):
    class Interrupted(Comparison):
        @property
        def progress(self) -> SimpleNamespace:
            os.kill(os.getpid(), number)
            return super().progress

    comparison = Interrupted(looks=100)
    compares(comparison)
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    found = signal.signal(number, handler)  # a shell's background jobs begin with SIGINT ignored
    try:
        answer = workbench("demo")
        assert answer.exit_code == code
        assert comparison.stopped_on == ["MainThread"]
        assert not lab.open
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, found)


def test_verify_proves_a_strategy():
    answer = workbench("verify", "digits-mlp", "--strategy", "data=3", "--batch", "7", "--json")
    assert answer.exit_code == 0, answer.output
    proof = json.loads(answer.stdout)
    assert proof["same_result"]
    assert 0 < proof["parameter_gradients"] < 1e-10


def test_verify_fails_when_the_result_differs(monkeypatch):
    monkeypatch.setattr(importlib.import_module("workbench.verify"), "TOLERANCE", -1.0)
    answer = workbench("verify", "digits-mlp", "--batch", "8")
    assert answer.exit_code == 1
    assert "NOT the serial result" in answer.stderr


def test_lab_passes_its_options_on_and_ends_as_the_server_did(monkeypatch, lab):
    asked: list[Any] = []

    def launch(folder: Path, **options: Any) -> int:
        asked.extend([folder, options])
        return 3

    monkeypatch.setattr(importlib.import_module("workbench.ui.lab"), "launch_lab", launch)
    assert workbench("lab", "--folder", "mine", "--port", "0", "--no-browser").exit_code == 3
    usual = {"lesson": "00", "lang": None, "voila": False}
    assert asked == [Path("mine"), {"port": 0, "browser": False, **usual}]
    assert workbench("lab", "--lesson", "06", "--lang", "zh", "--voila").exit_code == 3
    assert asked[3] == {"port": None, "browser": True, "lesson": "06", "lang": "zh", "voila": True}


@pytest.mark.timeout(150)
def test_demo_for_real(tmp_path):
    """Two commands to a measured speedup: this is the second one."""
    answer = subprocess.run(
        [sys.executable, "-c", "from workbench.cli import main; main()",
         "demo", "--steps", "6", "--repeats", "1", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    strategy = document["rows"][-1]
    assert strategy["strategy"].startswith("data=")
    assert strategy["same_result"] is True
    assert strategy["bytes_per_step"] > 0
    report = Path(document["report"])
    assert list(tmp_path.iterdir()) == [report]
    assert "data=" in report.read_text()
