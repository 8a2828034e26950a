"""Real processes: every strategy gives the serial weights, and goes on where another has ended."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.run import Run
from workbench.workload import Workload

pytestmark = pytest.mark.timeout(120)

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("data=2", {}),
    ("tensor=2", {}),
    ("sharded=2", {"stage": 1}),
    ("sharded=2", {"stage": 3}),
    ("pipeline=2", {"accumulate": 2}),
    ("pipeline=2", {"accumulate": 2, "schedule": "zb-h1"}),
    ("pipeline=2", {"accumulate": 2, "recompute": "yes"}),
]
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.01),
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
}


def workload(optimizer: str = "adam", **changes: Any) -> Workload:
    """Attention with dropout, norms, and sizes that do not divide."""
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 12),
        nn.ReLU(),
        nn.TransformerEncoderLayer(12, 3, 10, 0.2, batch_first=True),
        nn.Linear(12, 3),
    )
    values: dict[str, Any] = {
        "model": net,
        "data": (source.normal(size=(20, 5, 6)), source.normal(size=(20, 5, 3))),
        "loss": nn.MSELoss(),
        "optimizer": OPTIMIZERS[optimizer],
        "batch_size": 6,
        "dtype": "float64",
    }
    return Workload(**values | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def trained(lab: Lab, folder: Path, strategy: str, steps: int, **options: Any) -> Run:
    made = options.pop("work", None) or workload()
    return wb.run(made, strategy, steps=steps, folder=folder, lab=lab, **options).wait(60)


def assert_same(one: Run, other: Run) -> None:
    for kind in ("parameter", "optimizer"):
        ours, theirs = dask.compute(dict(one.state(kind)), dict(other.state(kind)))
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name], atol=1e-9, err_msg=f"{kind}:{name}")


@pytest.fixture(scope="module")
def whole(one_lab: Lab, folder: Path) -> dict[int, Run]:
    """Five steps in one process, with one micro-batch and with two."""
    return {n: trained(one_lab, folder, "serial", 5, accumulate=n) for n in (1, 2)}


@pytest.fixture(scope="module")
def begun(one_lab: Lab, folder: Path) -> dict[int, Run]:
    return {n: trained(one_lab, folder, "serial", 3, accumulate=n) for n in (1, 2)}


@pytest.mark.parametrize(("strategy", "options"), WAYS)
def test_processes_give_the_weights_of_one(
    lab: Lab, folder: Path, whole: dict[int, Run], strategy: str, options: dict[str, Any]
) -> None:
    made = trained(lab, folder, strategy, 5, **options)
    assert_same(made, whole[options.get("accumulate", 1)])
    counted = {row["sent_bytes"] for row in made.history[:3]}
    assert counted == {made.plan.bytes_per_step}


@pytest.mark.parametrize(("strategy", "options"), WAYS)
def test_a_run_goes_on_under_another_strategy_as_if_nothing_had_happened(
    lab: Lab,
    folder: Path,
    whole: dict[int, Run],
    begun: dict[int, Run],
    strategy: str,
    options: dict[str, Any],
) -> None:
    micro = options.get("accumulate", 1)
    second = trained(lab, folder, strategy, 1, start=begun[micro], **options)
    assert [row["step"] for row in second.history] == [3]
    third = trained(lab, folder, "tensor=2", 1, start=second, accumulate=micro)
    assert [row["step"] for row in third.history] == [4]
    assert third.history[0]["loss"] == pytest.approx(whole[micro].history[4]["loss"], rel=1e-9)
    assert_same(third, whole[micro])


def test_shares_lie_in_chunks_on_the_workers_that_own_them(lab: Lab, folder: Path) -> None:
    made = trained(lab, folder, "tensor=2", 1)
    assert made.parameters["0.weight"].chunks == ((6, 6), (6,))
    assert made.parameters["2.linear1.weight"].chunks == ((5, 5), (12,))
    assert made.parameters["2.self_attn.in_proj_weight"].shape == (36, 12)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 3}, "seed is 3 here and 0 there; use seed=0"),
        ({"batch_size": 5}, "batch_size is 5 here and 6 there"),
        ({"optimizer": "sgd"}, "which is SGD here and Adam there; use Adam"),
        ({"model": nn.Linear(6, 3)}, "'weight' has the shape"),
    ],
)
def test_what_does_not_go_on_is_refused(
    lab: Lab, folder: Path, begun: dict[int, Run], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(wb.PlanError, match=says):
        trained(lab, folder, "data=2", 1, work=workload(**changes), start=begun[1])


def test_a_run_that_has_not_ended_is_no_start(lab: Lab, folder: Path) -> None:
    going = wb.run(workload(), "serial", steps=100_000, folder=folder, lab=lab)
    try:
        with pytest.raises(wb.PlanError, match=r"wait for a run with run\.wait\(\)"):
            trained(lab, folder, "data=2", 1, start=going)
    finally:
        going.stop()
        going.wait(30)
