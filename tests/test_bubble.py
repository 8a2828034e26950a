"""How much the ranks of a pipeline wait: measured from spans, beside theory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import nn

from workbench.bubble import bubble_of
from workbench.models import ResidualMLP
from workbench.plan import Plan
from workbench.planning import plan
from workbench.schedules import SCHEDULES, timeline
from workbench.workload import Workload


def work() -> Workload:
    source = np.random.default_rng(0)
    return Workload(
        model=ResidualMLP(4, 5, 6, 6, 2),
        data=(source.normal(size=(64, 4)), source.normal(size=(64, 2))),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05),
        batch_size=32,
    )


def spans_of(found: Plan, slower: int = -1, step: int = 0) -> Iterator[dict[str, Any]]:
    """The spans of a step whose stages take a second each, that on one rank twice as much."""
    ranks = found.mesh.degree("pipeline")
    schedule = SCHEDULES[found.option("schedule", "1f1b")]
    actions = schedule.actions(ranks, len(found.stages) // ranks, found.batch.accumulate)
    costs = [1.0 + (stage.number % ranks == slower) for stage in found.stages]
    times = timeline(actions, costs, costs, costs)
    end = max(own[-1][1] for own in times)
    for rank in range(found.ranks):

        def span(kind: str, name: str, start: float, stop: float, rank: int = rank) -> dict:
            return {"rank": rank, "step": step, "kind": kind, "name": name, "start_s": start,
                    "stop_s": stop, "sent_bytes": 0}  # fmt: skip

        yield span("load", "samples", -1.0, 0.0)
        now = 0.0
        for start, stop, _ in times[found.mesh.place(rank, "pipeline")]:
            if start > now:
                yield span("wait", "stage 1: result of 2", now, start)
            yield span("compute", "", start, stop)
            now = stop
        if end > now:
            yield span("wait", "record of the step", now, end)
        yield span("comm", "record of the step", end, end + 1e-12)
        yield span("wait", "weights", end + 1.0, end + 2.0)


@pytest.mark.parametrize("micro", [1, 9])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("strategy", ["pipeline=2", "pipeline=3", "data=2,pipeline=2"])
def test_spans_of_equal_stages_give_what_theory_says(
    strategy: str, schedule: str, micro: int
) -> None:
    found = plan(work(), strategy, schedule=schedule, accumulate=micro)
    result = bubble_of(found, spans_of(found))
    assert result is not None
    if schedule != "interleaved":  # whose stages on a rank differ in counted cost here
        assert result.measured == pytest.approx(result.theory, abs=1e-6)
        assert result.measured == pytest.approx(result.equal_stages, abs=1e-6)
    else:
        assert result.measured == pytest.approx(result.theory, abs=0.05)
    ranks = found.mesh.degree("pipeline")
    if schedule in ("gpipe", "1f1b"):
        assert result.equal_stages == (ranks - 1) / (micro + ranks - 1)


def test_a_slow_stage_makes_the_others_wait_and_theory_knows() -> None:
    found = plan(work(), "pipeline=3", accumulate=6)
    even, uneven = (bubble_of(found, spans_of(found, slower)) for slower in (-1, 1))
    assert even is not None
    assert uneven is not None
    assert uneven.measured > even.measured + 0.1
    assert uneven.measured == pytest.approx(uneven.theory, abs=1e-6)
    assert uneven.by_rank[1] < uneven.by_rank[0]
    assert str(uneven) == "40 % measured; in theory 40 % with these stages, 25 % with equal ones"


def test_there_is_none_without_a_pipeline_or_without_spans() -> None:
    assert bubble_of(plan(work(), "data=2"), []) is None
    assert bubble_of(plan(work(), "pipeline=2"), []) is None


def test_a_run_records_the_spans_that_it_takes() -> None:
    made = run_on_threads(work(), "pipeline=2", 6, record_spans=True)
    spans = [
        {"rank": rank, **{key: getattr(span, key) for key in span.__slots__}}
        for rank, outcome in enumerate(made.outcomes)
        for span in outcome.spans
    ]
    found = bubble_of(made.plan, spans)
    assert found is not None
    assert 0 < found.measured < 1
    assert found.equal_stages == pytest.approx(1 / 9)
