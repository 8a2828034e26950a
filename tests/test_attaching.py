"""What is read back of runs and comparisons: the same figures, whoever has measured them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_run import workload

import workbench as wb
from workbench.attached_run import AttachedRun
from workbench.attaching import AttachedComparison, as_comparison, followed
from workbench.cluster.lab import Lab
from workbench.gathered import Gathered
from workbench.records import (
    ComparisonFolder,
    RunFolder,
    Tail,
    drive,
    driver,
    drives,
    name_of,
    read,
)
from workbench.resuming import start_from
from workbench.spans import KINDS
from workbench.speedup import Entry
from workbench.ui.report import report_html

pytestmark = pytest.mark.timeout(90)
TIMES = {f"{kind}_s": 0.01 if kind == "compute" else 0.0 for kind in KINDS}
SUMMARY: dict[str, Any] = {
    "workload": "digits-cnn", "strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu",
    "backend": "shared memory", "batch_size": 128, "samples": 1000, "seed": 0, "dtype": "float32",
    "status": "starting", "error": None, "steps": 50, "step_s": None, "bytes_per_step": 10,
    "accuracy": None,
}  # fmt: skip


def step(number: int) -> dict[str, float]:
    return {"step": number, "time_s": 0.01 * number, "step_s": 0.01, "loss": 1 / number,
            "samples_per_s": 12_800.0} | TIMES  # fmt: skip


def span(rank: int, number: int) -> dict[str, Any]:
    return {"rank": rank, "step": number, "kind": "compute", "name": "", "start_s": float(number),
            "stop_s": number + 0.5, "sent_bytes": 0}  # fmt: skip


def going_on(parent: Path, name: str = "one") -> RunFolder:
    """Return the folder of a run of this process that has made ten steps."""
    folder = RunFolder.create(parent, name)
    folder.write_summary(SUMMARY)
    folder.add([step(n) for n in range(1, 11)], [span(r, 1) for r in (0, 1)], ranks=2)
    folder.close()
    return folder


def gone(folder: Path, file: str = "run.json") -> None:
    """Have it that whoever wrote the folder is gone."""
    document = json.loads((folder / file).read_text())
    document["driver"]["started_s"] -= 100.0
    (folder / file).write_text(json.dumps(document))


def test_a_run_that_goes_on_and_one_whose_driver_is_gone(tmp_path: Path) -> None:
    folder = going_on(tmp_path)
    run = wb.attach(folder.path)
    assert isinstance(run, AttachedRun)
    assert (run.status, run.step, run.steps) == ("running", 10, 50)
    assert run.label == "data=2, 1 thread"
    assert run.history == [step(n) for n in range(1, 11)]
    assert run.spans == [span(0, 1), span(1, 1)]
    assert run.step_s == 0.01
    gone(folder.path)
    again = wb.attach(folder.path)
    assert again.status == "interrupted"
    assert "interrupted, step 10 of 50" in repr(again)
    assert as_comparison(again).rows[0]["step_s"] == 0.01


def test_a_run_that_goes_on_elsewhere_is_followed_to_its_end(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    folder.write_summary(SUMMARY)
    run: Any = wb.attach(folder.path)
    assert (run.status, run.step) == ("starting", 0)
    folder.add([step(1)], [span(0, 1)], ranks=2)
    assert run.step == 0  # as it was read
    assert (run.refresh().status, run.step) == ("running", 1)
    with (folder.path / "steps.jsonl").open("a") as file:
        file.write(json.dumps(step(2)) + '\n{"step": 1, "accuracy": 0.5}\n{"step": 3, "ti')
    assert run.refresh().history == [step(1) | {"accuracy": 0.5}, step(2)]
    assert run.spans == [span(0, 1)]
    with pytest.raises(TimeoutError, match=r"still running after 0.01 s, at step 2 of 50"):
        run.wait(0.01)
    ended = SUMMARY | {"status": "done", "accuracy": 0.75, "peak_memory_bytes": [1, 2]}
    rows = [step(n) for n in range(1, 9)]
    folder.finish(ended, rows, [span(0, 8), span(1, 8)])
    assert run.wait(10) is run
    assert (run.status, run.history, run.accuracy) == ("done", rows, 0.75)
    assert run.peak_memory_bytes == (1, 2)
    assert run.spans == [span(0, 8), span(1, 8)]
    assert not any(tmp_path.joinpath("one").glob(".*"))


def test_a_look_takes_no_more_than_some_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lines"
    file.write_text("one\ntwo\nthree\n")
    monkeypatch.setattr("workbench.records.MOST_BYTES", 9)
    tail = Tail(file)
    assert [tail.look() for _ in range(3)] == [
        (["one", "two"], True),
        (["three"], False),
        ([], False),
    ]
    other = tmp_path / "other"
    other.write_text("four\n")
    other.replace(file)
    assert tail.look() == (["four"], True)


def test_only_who_drives_a_run_can_stop_it(tmp_path: Path) -> None:
    folder = going_on(tmp_path)
    run: Any = wb.attach(folder.path)
    with pytest.raises(wb.RunError, match=rf"driven by process {os.getpid()} on .*press Stop"):
        run.stop()  # this process, but not as a run
    stopped: list[str] = []

    class Own:
        def stop(self) -> None:
            stopped.append("stopped")

    own = Own()
    drive(folder.path, own)
    run.stop()
    assert stopped == ["stopped"]
    del own
    gone(folder.path)
    run.stop()  # interrupted: there is nothing to stop


@pytest.mark.timeout(120)
def test_a_comparison_is_followed_while_it_goes_on(lab: Lab, tmp_path: Path) -> None:
    table = wb.compare(
        workload(), ["data=2"], steps=8, repeats=1, prove=False, folder=tmp_path, wait=False
    )
    found: Any = wb.attach(table.folder)
    assert found.status in ("starting", "running")
    assert found.wait(100).status == "done"
    assert found.rows == table.rows
    assert [run.history for run in found.runs] == [run.history for run in table.runs]
    assert found.progress.done_steps == table.progress.done_steps
    found.stop()
    again: Any = wb.attach(table.runs[0].folder)
    one = followed(again)
    assert one.refresh().status == "done"
    assert one.progress.done_steps == 8


def test_what_needs_weights_says_where_they_are(tmp_path: Path) -> None:
    run: Any = wb.attach(going_on(tmp_path).path)
    for use in (wb.evaluate, lambda run: wb.predict(run, []), lambda run: wb.save(run, tmp_path)):
        with pytest.raises(wb.RunError, match=r"not its weights; those are kept with wb.save"):
            use(run)
    work = workload()
    with pytest.raises(wb.PlanError, match=r"holds none; wait for a run with run.wait"):
        start_from(run, work, wb.plan(work))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = going_on(tmp_path)
    with (folder.path / "steps.jsonl").open("a") as file:
        file.write('{"step": 11, "tim')
    assert len(read(folder.path)[1]) == 10


def test_spans_on_disk_are_bounded_and_the_newest_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.records.LIVE_SPANS", 3)
    monkeypatch.setattr("workbench.records.MOST_SPANS", 5)
    folder = RunFolder.create(tmp_path, "one")
    folder.write_summary(SUMMARY)
    spans = [span(rank, n) for rank in (0, 1) for n in range(8)]
    for one in spans:
        folder.add([], [one], ranks=2)
    assert wb.attach(folder.path).spans == spans[:6]  # type: ignore[union-attr]
    folder.finish({**SUMMARY, "status": "done"}, [], spans)
    assert wb.attach(folder.path).spans == spans[3:8] + spans[11:]  # type: ignore[union-attr]


def test_the_newest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(wb.PlanError, match="nothing measured at workbench-runs"):
        wb.attach()
    for number, name in enumerate(("b", "a")):
        folder = going_on(Path("workbench-runs"), name).path
        for file in folder.iterdir():
            os.utime(file, (number, number + 1))
    assert wb.attach().folder == Path("workbench-runs/a")  # type: ignore[union-attr]
    assert wb.attach("workbench-runs/b").folder.name == "b"  # type: ignore[union-attr]


@pytest.mark.timeout(180)
def test_a_comparison_is_read_back_as_it_was(lab: Lab, tmp_path: Path) -> None:
    table = wb.compare(
        workload(), ["data=2"], steps=6, repeats=1, prove=False, spans=True, folder=tmp_path,
        price_per_worker_hour=0.5,
    )  # fmt: skip
    assert table.rows[2]["price_per_epoch"] == pytest.approx(
        table.rows[2]["epoch_s"] * 2 * 0.5 / 3600
    )
    found = wb.attach(tmp_path)
    assert isinstance(found, AttachedComparison)
    assert found.folder == table.folder
    assert found.rows == table.rows
    assert found.amdahl == table.amdahl
    assert found.timelines == table.timelines
    assert found.to_json() == json.loads(json.dumps(table.to_json()))
    assert [run.history for run in found.runs] == [run.history for run in table.runs]
    assert "All repeats were finished" in report_html(found)
    # A live run is drawn as well, and stays what it is.
    assert as_comparison(table.runs[0]).work is table.runs[0].work is table.work
    # What is left when the kernel dies before the last line is begun:
    file = table.folder / "comparison.json"
    document = json.loads(file.read_text()) | {"status": "running"}
    document["lines"][2].update(runs=[], complete=False)
    file.write_text(json.dumps(document))
    gone(table.folder, "comparison.json")
    left = wb.attach(table.folder)
    assert isinstance(left, AttachedComparison)
    assert left.status == "interrupted"
    assert left.rows == table.rows[:2]


DRIVER = """
import sys, torch, numpy as np, workbench as wb
class Slow(torch.nn.Linear):
    def forward(self, x):
        import time
        time.sleep(0 if x.is_meta else 0.02)
        return super().forward(x)
if __name__ == "__main__":
    data = np.zeros((50, 4), "float32"), np.zeros(50, "int64")
    work = wb.Workload(model=Slow(4, 3), data=data, batch_size=8)
    lab = wb.start(workers=1, threads=1)
    run = wb.run(work, steps=100_000, folder=sys.argv[1]).pause().advance(5)
    print("paused", flush=True)
    run.wait()
"""


def test_a_run_whose_kernel_was_killed_in_a_pause(tmp_path: Path, no_rank_is_left: None) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "runs"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "paused\n"
            assert wb.attach(tmp_path / "runs").status == "running"
        finally:
            process.send_signal(signal.SIGKILL)
    run = wb.attach(tmp_path / "runs")
    assert run.status == "interrupted"
    assert run.step > 4  # type: ignore[union-attr]
    assert run.spans  # type: ignore[union-attr]


def test_who_drives() -> None:
    told = driver()
    assert drives(told) is True
    assert drives({**told, "pid": 2**22 + 1}) is False
    assert drives({**told, "started_s": time.time() - 1e6}) is False
    assert drives({**told, "host": "elsewhere"}) is None
    assert drives({"host": told["host"]}) is False


@pytest.mark.parametrize("names", [["../secret"], ["/etc"], [3], [["x"]]])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, names: Any) -> None:
    inside = tmp_path / "in"
    going_on(tmp_path, "secret")
    going_on(inside, "one")
    line = {"strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu", "bytes_per_step": 1}
    document = {
        "machine": {"cores": 2}, "workload": {"name": "w", "batch_size": 1}, "status": "done",
        "error": None, "rows": [], "lines": [{**line, "runs": names}],
        "timelines": {"data=2": str(names[0])},
    }  # fmt: skip
    (inside / "comparison.json").write_text(json.dumps(document))
    if not isinstance(names[0], str):
        with pytest.raises(wb.PlanError, match=r"lines\[0\].runs is .* should be a list of texts"):
            wb.attach(inside)
        return
    found = wb.attach(inside)
    assert isinstance(found, AttachedComparison)
    assert found.runs == ()
    assert found.timelines == {}


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "..", ".", "", "a\\b\0c", "<img src=x>", "数" * 200]
)
def test_a_name_becomes_no_path_and_no_html(tmp_path: Path, name: str) -> None:
    folder = ComparisonFolder.create(tmp_path, name_of(name, "data=2")).path
    assert folder.parent == tmp_path
    assert not set(folder.name) & set("/\\<>\0")
    assert len(folder.name.encode()) < 120


@pytest.mark.parametrize("file", ["run.json", "steps.jsonl"])
def test_damaged_records_are_refused_in_a_sentence(tmp_path: Path, file: str) -> None:
    folder = going_on(tmp_path).path
    (folder / file).write_text('{"strategy": \n')
    with pytest.raises(wb.PlanError, match=r"The run in .* cannot be read"):
        wb.attach(folder)
    (folder / "run.json").write_text("{}")
    (folder / "steps.jsonl").write_text("")
    with pytest.raises(wb.PlanError, match=r"run.json cannot be shown: workload is missing; it"):
        wb.attach(folder)


def comparison_of(parent: Path, name: str, host: str, step_s: float) -> AttachedComparison:
    """Return a comparison of one serial run, as another machine may have left it."""
    folder = ComparisonFolder.create(parent, name)
    run = RunFolder.create(folder.path, "run")
    run.finish(
        SUMMARY | {"strategy": "serial", "ranks": 1, "status": "done"},
        [step(n) | {"step_s": step_s} for n in range(1, 11)],
        [],
    )
    entry = Entry("serial", 1, 1, "cpu", 0, [wb.attach(run.path)], complete=True)
    facts = {"name": "digits-cnn", "batch_size": 128, "samples": 1000, "seed": 0}
    document = {"machine": {"cores": 2}, "workload": facts, "status": "done", "error": None}
    folder.write({**document, "rows": []}, [entry], {})
    file = folder.path / "comparison.json"
    told = json.loads(file.read_text())
    told["driver"]["host"] = host
    file.write_text(json.dumps(told))
    found = wb.attach(folder.path)
    assert isinstance(found, AttachedComparison)
    return found


def test_what_stands_against_comparing_is_told(tmp_path: Path) -> None:
    one = comparison_of(tmp_path, "one", "here", 0.01)
    other = comparison_of(tmp_path, "other", "there", 0.02)
    assert Gathered([one]).cautions == []
    found = Gathered([one, other])
    assert [row["part"] for row in found.rows] == [0, 1]
    assert dict(found.cautions) == {
        "machines": {"named": "here, there"},
        "baselines": {"named": "1 process × 1 thread 10 ms, 1 process × 1 thread 20 ms"},
    }
    assert found.status == "done"
    folder = RunFolder.create(tmp_path, "single")
    folder.write_summary(SUMMARY | {"workload": "photo-denoise"})
    single: Any = wb.attach(folder.path)
    mixed = Gathered([one, single])
    assert mixed.status == "running"
    assert "workloads" in dict(mixed.cautions)
    folder.finish(SUMMARY | {"workload": "photo-denoise", "status": "done"}, [step(1)], [])
    assert mixed.refresh().status == "done"
    assert mixed.progress.done_steps == 10 + 1
