"""Comparisons: baselines, interleaving, the table, and the proof that can say no."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_run import until, workload
from torch import Tensor, nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.spans import KINDS
from workbench.speedup import Entry, rows, seconds_left

pytestmark = pytest.mark.timeout(90)
KEYS = {
    *("strategy", "ranks", "threads", "step_s", "step_s_min", "step_s_max", "speedup", "baseline"),
    *("compute_share", "comm_share", "wait_share", "bytes_per_step"),
    *("same_result", "max_difference", "predicted_step_s"),
}


def test_a_comparison_has_both_baselines_and_proves_the_result(lab: Lab, tmp_path: Path) -> None:
    changes: list[str] = []
    table = wb.compare(
        workload(0.001),
        ["serial", "data=2"],
        steps=8,
        repeats=2,
        folder=tmp_path,
        on_change=lambda c: changes.append(c.progress.text),
    )
    lines = [(row["strategy"], row["ranks"], row["threads"]) for row in table.rows]
    assert lines == [("serial", 1, 1), ("serial", 1, 2), ("data=2", 2, 1)]
    assert set(table.rows[0]) >= KEYS
    serial, _, data = table.rows
    assert serial["speedup"] == 1.0
    assert serial["baseline"] == data["baseline"] == "1 process × 1 thread"
    assert data["same_result"] is True
    assert data["max_difference"] <= 1e-10
    assert data["bytes_per_step"] == wb.plan(workload(), "data=2").bytes_per_step
    shares = sum(data[f"{kind}_share"] for kind in KINDS)
    assert shares == pytest.approx(1.0)
    assert all(row["complete"] and row["repeats"] == 2 for row in table.rows)
    assert table.status == "done"
    progress = table.progress
    assert progress.done_steps == progress.total_steps
    order = [(run.plan.strategy, run.threads) for run in table.runs]
    assert order == [("serial", 1), ("serial", 2), ("data=2", 1)] * 2  # interleaved
    assert any("float64" in text for text in changes)
    assert list(table.to_pandas()["strategy"]) == ["serial", "serial", "data=2"]
    json.dumps(table.to_json())


def test_a_comparison_pauses_and_goes_on_over_the_border_of_two_runs(
    lab: Lab, tmp_path: Path
) -> None:
    table = wb.compare(
        workload(0.02), ["data=2"], steps=6, repeats=1, prove=False, folder=tmp_path, wait=False
    )
    table.pause()
    assert table.status == "paused"
    first = table.runs[-1]
    table.advance(6 - first.step)  # to the end of this run
    assert first.status == "done"
    assert table.status == "paused"
    assert table.runs[-1] is not first
    step = table.runs[-1].step
    assert table.advance().runs[-1].step == step + 1
    assert table.resume().wait(60).status == "done"
    assert [row["repeats"] for row in table.rows] == [1, 1, 1]
    with pytest.raises(wb.RunError, match="takes no more commands: it is done"):
        table.pause()


class Cheats(nn.Module):
    """Depends on how many samples a rank sees: no strategy can make that the serial result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def test_a_result_that_differs_is_called_different(lab: Lab, tmp_path: Path) -> None:
    table = wb.compare(workload(model=Cheats()), ["data=2"], steps=7, repeats=1, folder=tmp_path)
    data = table.rows[-1]
    assert data["same_result"] is False
    assert data["max_difference"] > 1e-4


def test_a_comparison_in_the_background_stops_at_once(lab: Lab, tmp_path: Path) -> None:
    table = wb.compare(
        workload(0.01), ["data=2"], steps=1000, repeats=3, folder=tmp_path, wait=False
    )
    until(lambda: len(table.rows) >= 1)
    assert table.progress.eta_s is not None
    table.stop()
    table.wait(5)
    assert table.status == "stopped"
    assert table.rows[0]["strategy"] == "serial"


def test_the_bubble_of_a_pipeline_is_measured_and_kept(lab: Lab, tmp_path: Path) -> None:
    table = wb.compare(
        wb.workload("digits-mlp"),
        ["pipeline=2"],
        steps=8,
        repeats=1,
        prove=False,
        spans=True,
        folder=tmp_path,
        accumulate=2,
    ).wait(90)
    found = table.bubbles["pipeline=2"]
    assert 0 < found.measured < 1
    assert found.equal_stages == pytest.approx(1 / 3)
    assert wb.attach(table.folder).bubbles == table.bubbles


def test_all_strategies_are_checked_before_any_is_run(lab: Lab, tmp_path: Path) -> None:
    for strategies, says in ((["data=2", "data=3"], "3 workers"), (["dada=2"], "not a strategy")):
        with pytest.raises(wb.PlanError, match=says):
            wb.compare(workload(), strategies, folder=tmp_path)
    with pytest.raises(wb.PlanError, match="repeats=0"):
        wb.compare(workload(), ["data=2"], repeats=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def timed(*step_s: float, accuracy: float | None = None) -> Any:
    names = [f"{kind}_s" for kind in KINDS]
    history = [{"step_s": s, **dict.fromkeys(names, s / len(KINDS))} for s in step_s]
    median = sorted(step_s)[len(step_s) // 2]
    return SimpleNamespace(
        step_s=median, step=len(step_s), history=history, accuracy=accuracy, warm_up_steps=0
    )


def test_speedups_are_ratios_within_a_repeat() -> None:
    """A machine that slows down by half between the repeats changes no speedup."""
    serial = Entry("serial", 1, 1, "cpu", 0, [timed(1.0, 1.0, 1.0), timed(2.0, 2.0, 2.0)])
    whole = Entry("serial", 1, 2, "cpu", 0, [timed(0.5, 0.5, 0.5), timed(1.0, 1.0, 1.0)])
    data = Entry("data=2", 2, 1, "cpu", 8, [timed(0.4, 0.4, 0.4), timed(0.8, 0.8, 0.8)])
    row = rows([serial, whole, data], whole)[2]
    assert row["speedup"] == row["speedup_min"] == row["speedup_max"] == 2.5
    assert row["speedup_all_threads"] == 1.25
    assert (row["step_s_min"], row["step_s"], row["step_s_max"]) == pytest.approx((0.4, 0.6, 0.8))
    assert row["compute_share"] == pytest.approx(1 / len(KINDS))


def test_a_line_shows_when_it_has_enough_steps() -> None:
    serial = Entry("serial", 1, 1, "cpu", 0, [timed(1.0, 1.0)])
    assert rows([serial], serial) == []
    assert seconds_left([serial], 10, 2) == pytest.approx(18.0 + 0.4)
    assert seconds_left([Entry("serial", 1, 1, "cpu", 0)], 10, 2) is None


def test_too_few_steps_to_be_timed_are_refused(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(wb.PlanError, match=r"steps=5 are too few.*use 6"):
        wb.compare(workload(), ["data=2"], steps=5, folder=tmp_path)


class OnlyFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta and x.dtype != torch.float32:
            raise TypeError("this model is for float32")
        return self.layer(x)


def test_a_model_that_has_no_float64_is_timed_and_called_unproved(lab: Lab, tmp_path: Path) -> None:
    work = workload(model=OnlyFloat32(), dtype="float32")
    table = wb.compare(work, ["data=2"], steps=6, repeats=1, folder=tmp_path)
    assert table.status == "done"
    assert table.rows[-1]["same_result"] is None
    assert table.unproved is not None
    assert "this model is for float32" in table.unproved
