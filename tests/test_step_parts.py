"""What a step's time is said to have gone to."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.previewing import Previewer
from workbench.spans import KINDS
from workbench.workload import Workload

SLOW_S = 0.02


class SlowModel(nn.Module):
    """A model whose forward pass takes a while, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            time.sleep(SLOW_S)
        return self.layer(x)  # type: ignore[no-any-return]


class SlowUpdate(torch.optim.SGD):
    """An optimizer that takes twice as long."""

    def step(self, *given: Any, **named: Any) -> Any:
        time.sleep(2 * SLOW_S)
        return super().step(*given, **named)


@pytest.mark.parametrize("strategy", ["serial", "data=2"])
def test_the_parts_are_the_step_and_the_steps_are_the_time(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a rank does between two steps is not free.
    monkeypatch.setattr(Previewer, "send", lambda self: time.sleep(3 * SLOW_S))
    source = np.random.default_rng(0)
    work = Workload(
        model=SlowModel,
        data=(source.normal(size=(16, 3)), source.integers(0, 2, 16)),
        optimizer=SlowUpdate,
        batch_size=8,
    )
    steps = 4
    done = run_on_threads(work, strategy, steps, record_spans=True)
    for outcome in done.outcomes:
        rows = outcome.rows
        assert sum(row["step_s"] for row in rows) == pytest.approx(rows[-1]["time_s"])
        for row in rows:
            assert sum(row[f"{kind}_s"] for kind in KINDS) == pytest.approx(row["step_s"])
            assert min(row[f"{kind}_s"] for kind in KINDS) >= 0
            assert row["compute_s"] >= SLOW_S
            assert row["optimizer_s"] >= 2 * SLOW_S
            spans = [span for span in outcome.spans if span.step == row["step"]]
            length_s = max(s.stop_s for s in spans) - min(s.start_s for s in spans)
            assert length_s == pytest.approx(row["step_s"])
            assert sum(s.stop_s - s.start_s for s in spans) == pytest.approx(length_s)
            for kind, least_s in (("compute", 1), ("optimizer", 2)):
                told_s = sum(s.stop_s - s.start_s for s in spans if s.kind == kind)
                assert told_s >= least_s * SLOW_S
        assert all(row["overhead_s"] >= 3 * SLOW_S for row in rows[1:])
