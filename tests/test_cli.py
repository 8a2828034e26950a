"""The command ``workbench``: exit codes, sentences, figures, and what an interruption leaves."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_comparison import FakeComparison, row
from rich.console import Console

from workbench import machine
from workbench.cli import checks, commands, follow
from workbench.cli.figures import column, ranges
from workbench.cli.finding import finding
from workbench.cli.tables import comparison_tables
from workbench.cli.terminal import Terminal, finite
from workbench.errors import RunError
from workbench.records import RunFolder

COMMANDS = ("compare", "demo", "doctor", "lab", "report", "run", "verify")


def rows(step_s: float = 0.04, **changes: Any) -> list[dict[str, Any]]:
    """Return baselines of 80 and 50 ms per step, and a strategy of ``step_s``, changed as told."""
    told = {"step_s_min": step_s, "step_s_max": step_s} | changes
    return [
        row("serial", 1, 1, 0.08, step_s_min=0.07, step_s_max=0.09),
        row("serial", 1, 2, 0.05, step_s_min=0.045, step_s_max=0.055),
        row("data=2", 2, 1, step_s, **({"same_result": True, "max_difference": 3e-15} | told)),
    ]


class Comparison(FakeComparison):
    """Runs for a few looks at it, and then ends as told."""

    def __init__(self, end: str = "done", error: RunError | None = None, looks: int = 3) -> None:
        super().__init__()
        self.end, self.failure, self.looks = end, error, looks

    @property
    def status(self) -> str:
        self.looks -= 1
        if self.looks == 0:
            self.go_on(self.end)
            self.rows, self.error = rows(), self.failure
            for number, run in enumerate(self.runs):
                run.folder = Path(f"run-{number}")
        return self.end if self.looks <= 0 else "running"

    @status.setter
    def status(self, value: str) -> None:
        self.end = value

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"status": self.end, "error": None}


class Lab:
    """A cluster that is only told apart from none by being entered and left."""

    dashboard_link = "http://127.0.0.1:8787/status"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.open = False

    def start(self, **asked: Any) -> Lab:
        self.asked.append(asked)
        return self

    def __enter__(self) -> Lab:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False


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


def terminal(width: int = 100, **options: Any) -> tuple[Terminal, io.StringIO]:
    """Return a terminal whose progress goes to the returned stream, as to a screen."""
    screen = io.StringIO()
    err = Console(file=screen, force_terminal=True, width=width)
    return Terminal(Console(file=io.StringIO()), err, **options), screen


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
    assert "data=2 takes 40.0 ms per step: 2.00 times as fast as 1 process" in answer.stdout
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


def test_compare_keeps_what_report_reads_back(compares):
    compares(Comparison())
    Path("out").mkdir()
    assert workbench("compare", "digits-mlp", "data=2", "--out", "out").exit_code == 0
    answer = workbench("report", "out", "-o", "again.html")
    assert answer.exit_code == 0, answer.output
    assert "data=2" in Path("again.html").read_text()


def test_report_reads_what_json_printed(compares):
    compares(Comparison())
    Path("printed.json").write_text(workbench("compare", "digits-mlp", "data=2", "--json").stdout)
    assert workbench("report", "printed.json", "-o", "r.html").exit_code == 0
    assert "data=2" in Path("r.html").read_text()


def test_report_of_the_folder_of_a_run(tmp_path):
    shares = {"compute_s": 0.01, "comm_s": 0.0, "wait_s": 0.0, "optimizer_s": 0.0, "load_s": 0.0}
    steps = [{"step": n, "time_s": 0.01 * n, "step_s": 0.01, "loss": 1 / n} | shares
             for n in range(1, 11)]  # fmt: skip
    summary = {
        "workload": "digits-cnn", "strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu",
        "backend": "shared memory", "batch_size": 128, "seed": 0, "dtype": "float32",
        "status": "done", "error": None, "step_s": 0.01, "bytes_per_step": 10, "accuracy": 0.9,
    }  # fmt: skip
    folder = RunFolder.create(tmp_path, "one")
    folder.finish(summary, steps)
    answer = workbench("report", str(folder.path), "-o", str(tmp_path / "r.html"))
    assert answer.exit_code == 0, answer.output
    assert "10.0 ms" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "digits-rnn"), "There is no workload 'digits-rnn'"),
        (("run", "digits-cnn", "--strategy", "magic=2"), "'magic' is not a strategy"),
        (("run", "digits-cnn", "--strategy", "data=0"), "asks for degree 0"),
        (("run", "digits-cnn", "--strategy", "data=4", "--batch", "3"), "batch of 3"),
        (("run", "digits-cnn", "--strategy", "data=2", "--workers", "1"), "give --workers 2"),
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
    handler = signal.getsignal(number)
    answer = workbench("demo")
    assert answer.exit_code == code
    assert comparison.stopped_on == ["MainThread"]
    assert not lab.open
    assert signal.getsignal(number) is handler


def test_a_terminal_sees_the_figures_so_far_and_a_bar_that_goes_away():
    shown, screen = terminal()
    comparison = Comparison()
    follow.follow(
        comparison,
        shown,
        lambda: follow.Progressed(45, 90, 12.4, "data=2, repeat 1 of 3"),
        lambda: comparison_tables(rows()),
    )
    for part in ("data=2, repeat 1 of 3", "45/90", "about 12 s left", "vs 1 × 2"):
        assert part in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")


def test_what_somebody_else_stopped_has_failed():
    shown, _ = terminal(quiet=True)
    with pytest.raises(RunError, match="stopped before it had ended"):
        follow.follow(
            Comparison("stopped"), shown, lambda: follow.Progressed(0, 1, None, "starting")
        )


@pytest.mark.parametrize("width", [100, 90])
def test_tables_fit_and_nothing_is_cut_off(width):
    screen = io.StringIO()
    Console(file=screen, width=width).print(comparison_tables(rows()))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in screen.getvalue()
    assert sum("data=2" in line for line in lines) == 2


def test_numbers_of_a_column_have_the_same_decimals():
    assert column([1.234, 56.78, None]) == ["1.2", "56.8", "-"]
    assert ranges([1.0, None], [9.99, 1.0]) == ["1.00–9.99", "-"]


def test_numbers_that_json_lacks_become_null():
    assert finite({"a": [1.5, float("nan")], "b": float("inf")}) == {"a": [1.5, None], "b": None}


@pytest.mark.parametrize(
    ("changes", "cores", "sentence"),
    [
        ({}, 2, "So data=2 wins here"),
        ({"step_s_max": 0.05}, 2, "that is a draw"),
        ({"step_s": 0.06, "comm_share": 0.1, "wait_share": 0.2}, 2,
         "6.00 ms on communication and 12.0 ms waiting for each other, which is more"),
        ({"step_s": 0.06, "comm_share": 0.01, "wait_share": 0.01}, 2,
         "48.0 ms computing their share, where 1 process computes all of it in 40.0 ms"),
        ({"repeats": 1}, 2, "measure 3 or more"),
        ({}, 1, "asks for 2 cores where there is 1, so its ranks take turns"),
        ({}, 2, "is the same as that of serial: the largest difference is 3.0e-15"),
        ({"same_result": False}, 2, "is NOT the same as that of serial"),
    ],
)  # fmt: skip
def test_the_finding_says_what_was_measured(changes, cores, sentence):
    assert any(sentence in found for found in finding(rows(**changes), cores))


def test_there_is_no_finding_without_a_strategy():
    assert finding(rows()[:2], 2) == []


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


def test_doctor_finds_this_machine_good():
    answer = workbench("doctor", "--json")
    document = json.loads(answer.stdout)
    assert answer.exit_code == 0, [c for c in document["checks"] if c["state"] == "wrong"]
    assert document["machine"]["cores"] == machine.cores()
    assert {"cores", "GPUs", "loopback", "torch"} <= {c["name"] for c in document["checks"]}


def test_doctor_fails_when_something_is_wrong(monkeypatch):
    def refused(name: str) -> int:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    answer = workbench("doctor")
    assert answer.exit_code == 1
    assert "Processes cannot share memory here: not permitted." in answer.stdout
    assert "1 thing to mend." in answer.stdout


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        (["click>=1"], ["good"]),
        (["click>=999"], ["wrong"]),
        (["no-such-package>=1"], ["wrong"]),
        (["no-such-package; extra == 'test'"], []),
    ],
)
def test_doctor_holds_packages_against_what_is_required(monkeypatch, requires, state):
    monkeypatch.setattr(checks.metadata, "requires", lambda name: requires)
    assert [check.state for check in checks.packages()] == state


def test_doctor_names_the_missing_extension(monkeypatch, tmp_path):
    paths = importlib.import_module("jupyter_core.paths")
    monkeypatch.setattr(paths, "jupyter_path", lambda name: [str(tmp_path)])
    assert {check.state for check in checks.extensions()} == {"wrong"}


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
