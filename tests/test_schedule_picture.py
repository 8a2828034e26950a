"""The picture of a pipeline's schedule shows the lists that the engine runs, and nothing else."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from torch import nn

from workbench.plan import Plan
from workbench.planning import plan
from workbench.schedules import SCHEDULES
from workbench.ui.language import speaking
from workbench.ui.plan_view import PlanView
from workbench.ui.schedule_picture import LETTERS, schedule_picture
from workbench.workload import Workload

WORK = Workload(
    model=nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.ReLU()))),
    data=(np.ones((24, 6)), np.arange(24) % 6),
    batch_size=12,
)


def drawn(planned: Plan) -> tuple[list[str], list[tuple[float, float, float]], str]:
    """Return the names of all actions in the order drawn, their bars, and the lists below."""
    svg, _, rest = schedule_picture(planned).partition("</svg>")
    root = ElementTree.fromstring(svg + "</svg>")
    groups = [each for each in root.iter("g") if each.find("title") is not None]
    names = [str(each.find("title").text) for each in groups]  # type: ignore[union-attr]
    bars = [each.find("rect") for each in groups]
    places = [
        (float(bar.get("y")), float(bar.get("x")), float(bar.get("width")))  # type: ignore
        for bar in bars
    ]
    return names, places, rest


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        *(
            (f"pipeline={ranks}", {"schedule": name, "accumulate": micro})
            for name in SCHEDULES
            for ranks in (2, 3)
            for micro in (4, 6)
        ),
        ("pipeline=2,data=2", {}),
    ],
)
def test_all_actions_are_drawn_in_order_and_one_at_a_time(
    strategy: str, options: dict[str, Any]
) -> None:
    planned = plan(WORK, strategy, **options)
    ranks, schedule = planned.mesh.degree("pipeline"), SCHEDULES[planned.option("schedule", "1f1b")]
    lists = schedule.actions(ranks, len(planned.stages) // ranks, planned.batch.accumulate)
    stage = (lambda a: f"{a.stage}.") if schedule.chunked else (lambda a: "")
    expected = [[f"{LETTERS[a.kind]}{stage(a)}{a.micro}" for a in own] for own in lists]
    names, bars, rest = drawn(planned)
    assert names == [name for own in expected for name in own]
    rows: dict[float, list[tuple[float, float]]] = {}
    for y, x, width in bars:
        rows.setdefault(y, []).append((x, width))
    assert len(rows) == ranks
    for own in rows.values():
        for (x, width), (following, _) in pairwise(own):
            assert x + width <= following + 0.2  # pixels are rounded to tenths
    assert all(" ".join(own) in rest for own in expected)
    if strategy == "pipeline=2,data=2":
        assert "ranks 0, 1:" in rest or "ranks 0, 2:" in rest


def test_it_says_how_long_ranks_wait_and_speaks_chinese() -> None:
    planned = plan(WORK, "pipeline=2", accumulate=4)
    found = re.search(r"Ranks wait (\d+) %", schedule_picture(planned))
    assert found is not None
    assert 10 <= int(found[1]) <= 30  # 20 with equal stages
    with speaking("zh"):
        assert "微批次" in schedule_picture(planned)
    assert schedule_picture(plan(WORK, "data=2")) == ""


def test_the_panel_shows_it_for_pipelines_alone() -> None:
    view = PlanView()
    view.speak()
    for strategy, there in (("pipeline=2", True), ("tensor=2", False), ("serial", False)):
        view.show((None, plan(WORK, strategy)))  # type: ignore[arg-type]
        assert ("<svg" in view._schedule.value) is there
