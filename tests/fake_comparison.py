"""A comparison that computes nothing: what the panel and the report are tested with."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def row(strategy: str, ranks: int, threads: int, step_s: float, **changes: Any) -> dict[str, Any]:
    speedup = 0.08 / step_s
    return {
        "strategy": strategy,
        "ranks": ranks,
        "threads": threads,
        "device": "cpu",
        "backend": "shared memory",
        "step_s": step_s,
        "step_s_min": step_s * 0.9,
        "step_s_max": step_s * 1.2,
        "speedup": speedup,
        "speedup_min": speedup * 0.9,
        "speedup_max": speedup * 1.1,
        "baseline": "1 process × 1 thread",
        "speedup_all_threads": 0.05 / step_s,
        "compute_share": 0.8,
        "comm_share": 0.06,
        "wait_share": 0.04,
        "optimizer_share": 0.05,
        "load_share": 0.03,
        "overhead_share": 0.02,
        "bytes_per_step": 1_300_000,
        "same_result": None,
        "max_difference": None,
        "test_accuracy": None,
        "predicted_step_s": None,
        "epoch_s": step_s * 10,
        "core_s_per_epoch": step_s * 10 * ranks * threads,
        "price_per_epoch": None,
        "repeats": 3,
        "complete": True,
    } | changes


ROWS = [
    row("serial", 1, 1, 0.08, bytes_per_step=0),
    row("serial", 1, 2, 0.05, bytes_per_step=0),
    row("data=2", 2, 1, 0.04, same_result=True, max_difference=2.4e-15, test_accuracy=0.97),
]


class FakeComparison:
    """Stands still until it is told to go on."""

    def __init__(self, work: Any = "work") -> None:
        self.work = work
        self.status = "running"
        self.error: Exception | None = None
        self.rows: list[dict[str, Any]] = []
        self.runs: list[Any] = []
        self.crowded = False
        self.preview: Any = None
        self.timelines: dict[str, Any] = {}
        self.bubbles: dict[str, Any] = {}
        self.folder = Path("workbench-runs/fake")
        self.done = 0
        self.stopped_on: list[str] = []
        self.told: list[str] = []

    @property
    def progress(self) -> SimpleNamespace:
        return SimpleNamespace(
            done_steps=self.done, total_steps=90, eta_s=12.4, text="data=2, repeat 1 of 3"
        )

    def go_on(self, status: str = "running") -> None:
        self.rows = [dict(r) for r in ROWS]
        self.runs = [self._run(r) for r in ROWS]
        self.done = 90
        self.status = status

    def pause(self, *, wait: bool) -> None:
        self.told.append("pause")
        self.status = "paused"

    def resume(self, *, wait: bool) -> None:
        self.told.append("resume")
        self.status = "running"

    def advance(self, *, wait: bool) -> None:
        self.told.append("advance")

    def stop(self) -> None:
        self.stopped_on.append(threading.current_thread().name)
        self.status = "stopped"

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": {"cpu_model": "a <fast> CPU", "cores": 2, "memory_bytes": 8 * 2**30},
            "workload": {"name": "net <script>alert(1)</script>", "batch_size": 128},
            "rows": self.rows,
        }

    def _run(self, of: dict[str, Any]) -> SimpleNamespace:
        history = [
            {
                "step": n + 1,
                "time_s": (n + 1) * of["step_s"],
                "loss": 2.3 * math.exp(-n / 12),
                "samples_per_s": 32 / of["step_s"],
            }
            for n in range(30)
        ]
        return SimpleNamespace(
            plan=SimpleNamespace(strategy=of["strategy"]),
            threads=of["threads"],
            work=self.work,
            history=history,
            accuracy=of["test_accuracy"],
            peak_memory_bytes=(3 * 2**20,) * of["ranks"],
            predicted_memory_bytes=(2 * 2**20,) * of["ranks"],
        )
