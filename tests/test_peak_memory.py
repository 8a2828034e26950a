"""Memory of ranks: what they took at most, measured, beside what the plan predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from equality import workload
from fake_comparison import FakeComparison
from leftovers import until

import workbench as wb
from workbench.attached_run import AttachedRun
from workbench.cluster.lab import Lab
from workbench.records import read
from workbench.ui.memory_figure import (
    MOST_RANKS,
    RankMemory,
    memory_chart,
    memory_columns,
    memory_of_runs,
)

MIB = 2**20

OF_A_PROCESS = """
import torch
from workbench.peak_memory import PeakMemory

kept = torch.ones(64 * 2**18)  # 64 MiB that were there before
memory = PeakMemory(torch.device("cpu"))
early = torch.ones(128 * 2**18)
del early
memory.begin()
before = memory.peak_bytes
late = torch.ones(32 * 2**18)
del late
print(before, memory.peak_bytes)
"""


@pytest.mark.timeout(100)
def test_the_peak_is_that_since_the_steps_began() -> None:
    told = subprocess.run(
        [sys.executable, "-c", OF_A_PROCESS], check=True, capture_output=True, text=True, timeout=90
    ).stdout
    before_bytes, peak_bytes = map(int, told.split())
    assert before_bytes < 16 * MIB
    assert 30 * MIB < peak_bytes < 64 * MIB


@pytest.mark.timeout(100)
def test_a_run_tells_the_memory_of_every_rank(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(20, 6), "data=2", steps=100_000, folder=tmp_path, lab=lab)
    assert until(lambda: run.peak_memory_bytes and min(run.peak_memory_bytes) > 0, 40)
    run.stop()
    run.wait(60)
    assert len(run.peak_memory_bytes) == 2
    assert min(run.peak_memory_bytes) > 0
    assert run.predicted_memory_bytes == tuple(run.plan.memory(r).total_bytes for r in (0, 1))
    summary, rows = read(run.folder)
    again = AttachedRun(run.folder, summary, rows)
    assert again.peak_memory_bytes == run.peak_memory_bytes
    assert again.predicted_memory_bytes == run.predicted_memory_bytes
    assert json.dumps(run.summary())


def of(strategy: str, measured: tuple[int, ...], predicted: tuple[int, ...]) -> SimpleNamespace:
    plan = SimpleNamespace(strategy=strategy)
    return SimpleNamespace(
        plan=plan, threads=1, peak_memory_bytes=measured, predicted_memory_bytes=predicted
    )


def test_the_figure_has_two_bars_for_each_rank() -> None:
    runs = [
        of("serial", (5 * MIB,), (4 * MIB,)),
        of("data=2", (3 * MIB, 4 * MIB), (2 * MIB, 2 * MIB)),
        of("data=2", (4 * MIB, 3 * MIB), (2 * MIB, 2 * MIB)),
        of("tensor=2", (), (MIB, MIB)),
    ]
    columns = memory_columns(memory_of_runs(runs)())
    assert columns["label"][1] == "data=2, rank 0"
    assert columns["measured"] == [5.0, 4.0, 4.0, 0.0, 0.0]
    assert columns["predicted"] == [4.0, 2.0, 2.0, 1.0, 1.0]
    assert columns["measured_text"][-1] == "–"
    chart = memory_chart()
    assert chart.draw(columns)
    bars = [r.glyph for r in chart.figure.renderers]
    assert [bar.hatch_pattern for bar in bars[:2]] == [" ", "/"]
    many = [RankMemory("data=64", rank, MIB, None) for rank in range(64)]
    assert len(memory_columns(many)["label"]) == MOST_RANKS


def test_a_comparison_tells_the_figure() -> None:
    comparison = FakeComparison()
    comparison.go_on()
    assert [m.measured_bytes for m in memory_of_runs(comparison.runs)()] == [3 * MIB] * 4
