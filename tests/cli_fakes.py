"""A comparison and a cluster that compute nothing: what the command line is tested with."""

from __future__ import annotations

from typing import Any

from fake_comparison import FakeComparison, row

from workbench.errors import RunError


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
