"""Sharded data parallelism: three stages, exact, with what each rank keeps and sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equality import OPTIMIZERS, assert_bytes, assert_same, workload
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import run_on_threads
from test_tensor import MODELS, work
from torch import nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.comm.lending import Lending
from workbench.comm.threads import ThreadComm
from workbench.errors import PlanError
from workbench.plan import Plan
from workbench.planning import plan
from workbench.workload import Workload

STAGES = (1, 2, 3)


@contextmanager
def without_common_memory(apart: bool = True) -> Iterator[None]:
    """Have ranks gather parameters as those of several hosts do."""
    with pytest.MonkeyPatch.context() as patch:
        if apart:
            patch.setattr(ThreadComm, "_common", Lending._common)
        yield


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("strategy", ["sharded=2", "sharded=3", "data=2,sharded=2"])
@pytest.mark.parametrize("name", [*MODELS, "net"])
def test_training_equals_serial_and_sends_what_the_plan_says(
    name: str, strategy: str, stage: int
) -> None:
    made = workload(14, 6) if name == "net" else work(name, "adam")
    one = run_on_threads(made, "serial", 5)
    many = run_on_threads(made, strategy, 5, stage=stage)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-10)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    assert_bytes(many)


@given(
    samples=st.integers(6, 20),
    batch_size=st.integers(4, 6),
    degree=st.integers(1, 4),
    stage=st.sampled_from(STAGES),
    accumulate=st.integers(1, 2),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    clip=st.sampled_from([None, 0.1]),
    apart=st.booleans(),
)
@settings(max_examples=16, deadline=None)
def test_any_run_equals_serial(
    samples: int,
    batch_size: int,
    degree: int,
    stage: int,
    accumulate: int,
    optimizer: str,
    clip: float | None,
    apart: bool,
) -> None:
    made = workload(samples, batch_size, dropout=0.2, optimizer=optimizer).with_(clip_norm=clip)
    one = run_on_threads(made, "serial", 5, accumulate=accumulate)
    with without_common_memory(apart):
        many = run_on_threads(made, f"sharded={degree}", 5, accumulate=accumulate, stage=stage)
    assert_same(many, one)
    assert_bytes(many)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["mlp", "tied", "encoder"])
def test_shares_are_cut_again_by_other_axes(name: str, stage: int) -> None:
    one = run_on_threads(work(name, "sgd"), "serial", 5)
    many = run_on_threads(work(name, "sgd"), "sharded=2,tensor=2", 5, stage=stage)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    assert_bytes(many)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["mlp", "tied", "encoder"])
def test_ranks_without_common_memory_gather_and_give_the_same(name: str, stage: int) -> None:
    one = run_on_threads(work(name, "adam"), "serial", 5)
    with without_common_memory():
        many = run_on_threads(work(name, "adam"), "sharded=2", 5, stage=stage)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    assert_bytes(many)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("sharded=2,tensor=2", {"stage": 1}),
        ("sharded=2,tensor=2", {"stage": 3}),
        ("data=2,sharded=2", {"stage": 2}),
        ("pipeline=2,sharded=2", {"stage": 1, "accumulate": 2}),
        ("pipeline=2,sharded=2", {"stage": 3, "accumulate": 2}),
    ],
)
def test_clipping_and_weight_decay_are_exact_in_hybrids(
    strategy: str, options: dict[str, Any], optimizer: str
) -> None:
    made = work("mlp", "adam").with_(optimizer=OPTIMIZERS[optimizer], clip_norm=0.05)
    one = run_on_threads(made, "serial", 5, accumulate=options.get("accumulate", 1))
    many = run_on_threads(made, strategy, 5, **options)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    assert_bytes(many)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_next_layer_is_fetched_while_this_one_computes(stage: int) -> None:
    steps = 3
    with without_common_memory():
        found = run_on_threads(work("mlp", "sgd"), "sharded=2", steps, stage=stage, accumulate=2)
    gathered = [c for c in found.plan.collectives if c.operation == "all_gather"]
    first = next(c for c in gathered if c.phase == "forward")
    for rank, outcome in enumerate(found.outcomes):
        whole = sum(found.plan.sent_by(c, rank) for c in gathered)
        begins = first.sent_bytes(2, rank)
        # The first step learns the order; then only what a micro-batch begins with comes unasked.
        assert outcome.sent_bytes["exchange"] == (steps - 1) * (whole - begins)


def test_nothing_is_fetched_that_a_shorter_step_does_not_use() -> None:
    # 4 samples, then 1: one micro-batch of the second step has none, and is skipped.
    made = workload(5, 4).with_(seed=2)
    one = run_on_threads(made, "serial", 5, accumulate=2)
    with without_common_memory():
        many = run_on_threads(made, "sharded=2", 5, accumulate=2)
    assert_same(many, one)
    assert_bytes(many)


@pytest.mark.parametrize("backend", ["shared memory", "gloo"])
def test_processes_equal_serial_and_gather_or_read_what_they_need(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    monkeypatch.setattr("workbench.comm.connect.choose", lambda host_ids, device: backend)
    made = work("mlp", "adam")
    one = run_on_threads(made, "serial", 5)
    run = wb.run(made, "sharded=2", steps=5, folder=tmp_path).wait(60)
    assert run.backend == backend
    for name, array in run.parameters.items():
        np.testing.assert_allclose(array.compute(), one.state[f"parameter:{name}"], atol=1e-9)
    assert {row["sent_bytes"] for row in run.history} == {run.plan.bytes_per_step}
    waits = {span["name"] for span in run.spans if span["kind"] == "wait"}
    # In common memory nobody waits for parameters that nobody has changed.
    again = any(name.endswith(": parameters again") for name in waits)
    assert again == (backend == "gloo")


def planned(strategy: str, **options: Any) -> Plan:
    return plan(work("mlp", "sgd"), strategy, **options)


def owned(found: Plan) -> list[int]:
    """Numbers that each rank keeps of the parameters."""
    return [sum(found.owned(a, rank).numel for a in found.arrays) for rank in range(found.ranks)]


def test_only_stage_3_keeps_a_share_of_the_parameters_between_steps() -> None:
    (whole,) = owned(planned("serial"))
    assert owned(planned("sharded=2", stage=1)) == [whole, whole]
    assert sum(owned(planned("sharded=2", stage=3))) == whole
    assert owned(planned("sharded=2")) == owned(planned("sharded=2", stage="3"))


def test_what_travels_at_each_stage() -> None:
    def operations(stage: int) -> list[str]:
        found = planned("sharded=2", stage=stage)
        return [
            c.operation for c in found.collectives if c.phase in ("forward", "backward", "update")
        ]

    layers = 3  # of DigitsMLP, each with weight and bias
    assert operations(3) == ["all_gather", "all_gather", "reduce_scatter"] * layers
    assert operations(2) == ["all_gather", "reduce_scatter"] * layers
    assert operations(1) == ["all_gather", "all_reduce"]


def test_a_parameter_too_small_or_kept_in_a_list_stays_whole() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0]) * self.scale

    source = np.random.default_rng(0)
    made = Workload(
        model=Recurrent(),
        data=(source.normal(size=(8, 5, 3)), source.normal(size=(8, 5, 2))),
        loss=nn.MSELoss(),
        batch_size=4,
        dtype="float64",
    )
    found = plan(made, "sharded=2")
    assert {a.name for a in found.arrays if found.parameter_cuts(a.name)} == {
        "head.weight",
        "head.bias",
    }
    assert "whole on every rank: lstm.weight_ih_l0" in str(found)
    one, many = (run_on_threads(made, s, 5) for s in ("serial", "sharded=2"))
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-10, err_msg=key)
    assert_bytes(many)


def test_frozen_parameters_are_shared_and_stay_as_they_are() -> None:
    made = work("mlp", "sgd")
    model = made.make_model()
    model[1].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    made = made.with_(model=model)
    one, many = (run_on_threads(made, s, 5) for s in ("serial", "sharded=2"))
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-10, err_msg=key)
    assert_bytes(many)


@pytest.mark.parametrize(
    ("strategy", "options", "says"),
    [
        ("sharded=2", {"stage": 4}, "Option stage=4 is not one of its choices: '3' or '2' or '1'"),
        ("sharded=9", {}, "sharded=9 asks for 9 replicas.*Use sharded=6"),
        ("data=4,sharded=2", {}, "data=4,sharded=2 asks for 8 replicas"),
    ],
)
def test_what_cannot_be_asked_is_refused(strategy: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        planned(strategy, **options)
