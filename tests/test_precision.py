"""bfloat16 with weights in float32: against the serial run of the same precision, every axis."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equality import OPTIMIZERS
from rank_threads import ThreadRun, run_on_threads
from torch import Tensor, nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.comm.threads import run_threads
from workbench.errors import PlanError
from workbench.losses import NextByteLoss
from workbench.models import ByteGPT
from workbench.workload import Workload

STEPS = 3
LOSS_TOLERANCE = 0.02  # of a loss of about 1.4; bfloat16 has 8 bits
WEIGHT_TOLERANCE = 0.01
source = np.random.default_rng(0)


class Net(nn.Module):
    """A convolution, every kind of norm, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.second = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(6, 12)
        self.layer = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.group(self.batch(self.first(x))))
        x = self.pool(self.second(self.instance(x))).flatten(1)
        return self.head(torch.relu(self.layer(self.hidden(x))))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        # Code may ask for the dtype of a weight that another call of a layer uses.
        return self.layer(x.to(self.layer.weight.dtype))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def workload(model: type[nn.Module] = Net, shape: tuple[int, ...] = (2, 8, 8)) -> Workload:
    torch.manual_seed(0)
    return Workload(
        model=model(),
        data=(source.normal(size=(20, *shape)), source.integers(0, 4, 20)),
        test_data=(source.normal(size=(6, *shape)), source.integers(0, 4, 6)),
        optimizer=OPTIMIZERS["sgd"],
        batch_size=10,
    )


def gpt() -> Workload:
    torch.manual_seed(0)
    bytes_ = source.integers(0, 256, (12, 16))
    return Workload(
        model=ByteGPT(16, 4, 2, 16),
        data=(bytes_, bytes_),
        loss=NextByteLoss(),
        optimizer=partial(torch.optim.Adam, lr=0.001),
        batch_size=6,
    )


def largest_difference(got: ThreadRun, want: ThreadRun) -> float:
    return max(float(np.abs(got.state[name] - value).max()) for name, value in want.state.items())


def assert_close(got: ThreadRun, want: ThreadRun) -> None:
    np.testing.assert_allclose(got.losses, want.losses, atol=LOSS_TOLERANCE)
    for name, value in want.state.items():
        if name.startswith(("parameter", "buffer")):
            assert got.state[name].dtype == value.dtype
            np.testing.assert_allclose(got.state[name], value, atol=WEIGHT_TOLERANCE, err_msg=name)
    for rank, outcome in enumerate(got.outcomes):
        assert {row["sent_bytes"] for row in outcome.rows} == {got.plan.sent_bytes(rank)}


WORK, GPT = workload(), gpt()


@cache
def serial(accumulate: int) -> ThreadRun:
    return run_on_threads(WORK, "serial", STEPS, precision="bf16", accumulate=accumulate)


@pytest.mark.parametrize(
    ("strategy", "accumulate", "options"),
    [
        ("data=2", 2, {}),
        ("data=3", 1, {}),
        ("sharded=2", 2, {"stage": 1}),
        ("sharded=2", 2, {"stage": 2}),
        ("sharded=3", 2, {"stage": 3}),
        ("tensor=2", 2, {}),
        ("pipeline=2", 1, {}),
        ("pipeline=2", 2, {}),
        ("spatial=2", 1, {}),
        ("spatial=2", 2, {}),
        ("channel=3", 2, {}),
        ("data=2,tensor=2", 1, {}),
        ("data=2,sharded=2", 2, {}),
        ("tensor=2,spatial=2", 1, {}),
        ("sharded=2,tensor=2", 2, {}),
        ("pipeline=2,data=2", 2, {}),
        ("pipeline=2", 2, {"schedule": "interleaved"}),
    ],
)
def test_every_axis_gives_the_serial_run_of_bfloat16(
    strategy: str, accumulate: int, options: dict[str, Any]
) -> None:
    how: dict[str, Any] = {"precision": "bf16", "accumulate": accumulate}
    assert_close(run_on_threads(WORK, strategy, STEPS, **how, **options), serial(accumulate))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("tensor=2", {}),
        ("tensor=2", {"sequence": "split"}),
        ("sharded=2", {}),
        ("pipeline=2", {"accumulate": 3}),
        ("pipeline=2", {"accumulate": 3, "schedule": "zb-h1"}),
        ("pipeline=2", {"accumulate": 3, "recompute": "yes"}),
    ],
)
def test_a_transformer_is_cut_in_bfloat16(strategy: str, options: dict[str, Any]) -> None:
    want = run_on_threads(GPT, "serial", 2, precision="bf16")
    got = run_on_threads(GPT, strategy, 2, precision="bf16", **options)
    assert_close(got, want)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "bf16"},
        {"compression": "powersgd"},
        {"compression": "topk"},
        {"sync_every": 2},
        {"sync_every": 2, "outer": "nesterov"},
    ],
)
def test_fewer_bytes_on_the_data_axis_go_with_bfloat16(options: dict[str, Any]) -> None:
    got = run_on_threads(WORK, "data=2", STEPS, precision="bf16", **options)
    want = run_on_threads(WORK, "data=2", STEPS, **options)
    np.testing.assert_allclose(got.losses, want.losses, atol=2 * LOSS_TOLERANCE)
    for rank, outcome in enumerate(got.outcomes):
        assert sum(row["sent_bytes"] for row in outcome.rows) > 0
        assert got.plan.sent_bytes(rank) > 0


def test_recurrent_layers_compute_with_the_copies() -> None:
    work = workload(Recurrent, (5, 6))
    low = run_on_threads(work, "data=2", STEPS, precision="bf16")
    full = run_on_threads(work, "serial", STEPS)
    assert_close(low, run_on_threads(work, "serial", STEPS, precision="bf16"))
    assert 0 < largest_difference(low, full) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("strategy", ["data=2", "sharded=2"])
def test_what_is_computed_is_bfloat16_and_what_is_updated_float32(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    linear = nn.functional.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # the score is taken with the weights as they are
            seen.update((x.dtype, weight.dtype, bias.dtype))
        return linear(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", watched)
    run = run_on_threads(workload(Layer, (6,)), strategy, 2, precision="bf16")
    assert seen == {torch.bfloat16}
    assert run.state["parameter:layer.weight"].dtype == np.float32
    assert run.state["optimizer:momentum_buffer:layer.weight"].dtype == np.float32
    weight = torch.from_numpy(run.state["parameter:layer.weight"])
    assert not torch.equal(weight.bfloat16().float(), weight)  # it has more digits


def test_updates_too_small_for_bfloat16_are_not_lost() -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1, keepdim=True) * 0 + self.shift

    work = Workload(
        model=Shift(),
        data=(np.zeros((4, 2)), np.zeros((4, 1))),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.SGD, lr=1e-4),
        batch_size=4,
    )
    run = run_on_threads(work, "data=2", 20, precision="bf16")
    # A step is 2e-4, and bfloat16 has nothing between 1 and 0.996.
    assert run.state["parameter:shift"] == pytest.approx(1 - 20 * 2e-4, abs=1e-4)


def test_the_plan_says_what_is_halved() -> None:
    full, low = (wb.plan(WORK, "sharded=2", precision=each) for each in ("full", "bf16"))

    def sent(plan: Any, end: str) -> int:
        return sum(plan.sent_by(c, 0) for c in plan.collectives if c.name == end)

    assert sent(low, "hidden: parameters") * 2 == sent(full, "hidden: parameters")
    assert sent(low, "hidden: gradients") == sent(full, "hidden: gradients")
    assert sent(low, "batch: parameters") == sent(full, "batch: parameters")
    assert "rounding of bfloat16" in str(low)
    serial, one = wb.plan(WORK, "serial").memory(0), wb.plan(WORK, "serial", precision="bf16")
    assert one.memory(0).gradients_bytes == serial.gradients_bytes
    assert one.memory(0).optimizer_bytes == serial.optimizer_bytes
    assert serial.parameters_bytes < one.memory(0).parameters_bytes
    assert one.memory(0).parameters_bytes <= 1.5 * serial.parameters_bytes
    assert one.memory(0).activations_bytes < 0.6 * serial.activations_bytes


def test_what_cannot_be_in_bfloat16_is_refused() -> None:
    with pytest.raises(PlanError, match='float64; use precision="full"'):
        wb.plan(WORK.with_(dtype="float64"), "data=2", precision="bf16")
    with pytest.raises(PlanError, match="choices: 'full' or 'bf16'"):
        wb.plan(WORK, "data=2", precision="fp8")
    with pytest.raises(PlanError, match="leave precision out"):
        wb.verify(nn.Linear(2, 2), torch.ones(2, 2), strategy="data=2", precision="bf16")

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.zeros(6, device=x.device))

    with pytest.raises(PlanError, match="gives layer 'layer' numbers of 4 bytes"):
        wb.plan(workload(Mixes, (6,)), "data=2", precision="bf16")


def test_sums_of_halves_are_rounded_once() -> None:
    values = (256.0, 1.0, 1.0)  # 257 is no number of bfloat16
    found = run_threads(
        3, lambda comm: comm.all_reduce(torch.tensor([values[comm.rank]], dtype=torch.bfloat16))
    )
    assert [float(x) for x in found] == [258.0] * 3


@pytest.mark.timeout(90)
def test_a_comparison_in_bfloat16_says_what_it_has_proved(lab: Lab, tmp_path: Path) -> None:
    work = workload(Layer, (6,))
    table = wb.compare(work, ["data=2"], steps=8, repeats=1, folder=tmp_path, precision="bf16")
    row = table.rows[-1]
    assert row["same_result"] is True
    assert row["proof"] == "in float64, without bf16"
    assert row["max_difference"] <= 1e-10
    assert row["loss"] == pytest.approx(table.rows[0]["loss"], abs=LOSS_TOLERANCE)
    run = table.runs[-1]
    assert run.history[0]["sent_bytes"] == run.plan.bytes_per_step == row["bytes_per_step"]
    assert run.parameters["layer.weight"].dtype == np.float32
