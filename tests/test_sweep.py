"""A sweep: what is worth a try, and why the rest cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_run import workload
from torch import nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.compare import planned
from workbench.mesh import Mesh
from workbench.strategies import STRATEGIES
from workbench.strategies.notation import parse
from workbench.sweep import candidates

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("workers", range(1, 13))
def test_candidates_fit_the_workers_and_are_all_different(workers: int) -> None:
    meshes = [parse(strategy) for strategy in candidates(workers)]
    assert meshes[0] == Mesh()
    assert max(mesh.size for mesh in meshes) <= workers
    assert len(set(meshes)) == len(meshes)
    alone = {mesh.axes[0] for mesh in meshes if len(mesh.axes) == 1}
    assert alone == {(axis, n) for axis in STRATEGIES for n in range(2, workers + 1)}


def test_hybrids_use_as_many_ranks_as_go() -> None:
    both = [mesh for mesh in map(parse, candidates(7)) if len(mesh.axes) == 2]
    assert {mesh.size for mesh in both} == {6}
    assert {"data=2,tensor=3", "data=3,tensor=2", "pipeline=3,tensor=2"} <= set(candidates(7))
    assert not [mesh for mesh in map(parse, candidates(3)) if len(mesh.axes) > 1]
    assert [s for s in candidates(4, hybrids=False) if "," in s] == []


def test_what_cannot_be_planned_is_listed_with_its_sentence() -> None:
    work = workload(model=nn.Linear(4, 3))
    plans, refused = planned(work, candidates(4), skip_refused=True)
    assert {"serial", "data=2", "data=4", "tensor=2"} <= {plan.strategy for plan in plans}
    assert {"pipeline=2", "spatial=2"} <= set(refused)
    assert all(sentence.endswith(".") for sentence in refused.values())
    assert len(plans) + len(refused) == len(candidates(4))
    with pytest.raises(wb.PlanError, match=r"None of 1 strategies can be done. spatial=2: "):
        planned(work, ["spatial=2"], skip_refused=True)
    with pytest.raises(wb.PlanError):
        planned(work, ["serial", "spatial=2"], skip_refused=False)


def test_a_sweep_is_one_comparison(lab: Lab, tmp_path: Path) -> None:
    work = workload(model=nn.Linear(4, 3))
    table = wb.sweep(work, steps=6, repeats=1, prove=False, folder=tmp_path)
    assert {"serial", "data=2", "tensor=2"} <= {row["strategy"] for row in table.rows}
    assert "spatial=2" in table.refused
    assert table.to_json()["refused"] == table.refused
    with pytest.raises(wb.PlanError, match="workers"):
        wb.sweep(work, workers=3)
    with pytest.raises(wb.PlanError, match="workers=0"):
        wb.sweep(work, workers=0)
