"""Pipelines: where models are cut, what crosses, and that every schedule is exact."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from equality import assert_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import UNet
from operator_cases import prove
from rank_threads import run_on_threads
from test_tensor import MODELS, work
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.layers import weight_gradients
from workbench.models import ByteGPT, DigitsCNN, ResidualMLP
from workbench.plan import Plan
from workbench.planning import plan
from workbench.strategies.pipeline import balance
from workbench.verify import verify
from workbench.workload import Workload

WAYS: dict[str, dict[str, Any]] = {
    "1f1b": {},
    "gpipe": {"schedule": "gpipe"},
    "zb-h1": {"schedule": "zb-h1"},
    "interleaved": {"schedule": "interleaved"},
    "recompute": {"recompute": "yes"},
}


@pytest.fixture(autouse=True)
def _all_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small weights add up their gradients as large ones do."""
    monkeypatch.setattr(weight_gradients, "LARGE_NUMEL", 0)


def vector(model: nn.Module, *shape: int, dtype: str = "float64", batch: int = 6) -> Workload:
    """A workload of random numbers, whose targets have the shape of the output."""
    source = np.random.default_rng(0)
    x = source.normal(size=(2 * batch + 2, *shape))
    with torch.no_grad():
        y = model.to(torch.float64).eval()(torch.from_numpy(x))
    model.train()
    return Workload(
        model=model,
        data=(x, source.normal(size=tuple(y.shape))),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        batch_size=batch,
        dtype=dtype,
    )


def assert_equal(made: Workload, strategy: str, **options: Any) -> Plan:
    """Five steps give the weights of one process, and send what the plan says."""
    micro = {"accumulate": options.get("accumulate", 3)}
    one = run_on_threads(made, "serial", 5, **micro)
    many = run_on_threads(made, strategy, 5, **{**options, **micro})
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-9)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    full = [step for step in range(5) if (step + 1) % 3]
    for rank, outcome in enumerate(many.outcomes):
        counted = {outcome.rows[step]["sent_bytes"] for step in full}
        assert counted == {many.plan.sent_bytes(rank)}
    return many.plan


def residual() -> Workload:
    torch.manual_seed(3)
    return vector(ResidualMLP(6, 8, 12, 4, 3), 6)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(
    "strategy", ["pipeline=2", "pipeline=3", "data=2,pipeline=2", "pipeline=2,tensor=2"]
)
def test_every_schedule_gives_the_weights_of_one_process(strategy: str, way: str) -> None:
    assert_equal(residual(), strategy, **WAYS[way])


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_shares_of_parameters_in_every_stage(way: str, stage: str) -> None:
    assert_equal(residual(), "sharded=2,pipeline=2", stage=stage, **WAYS[way])


@pytest.mark.parametrize("strategy", ["data=2,pipeline=2,tensor=2", "data=2,sharded=2,pipeline=2"])
def test_eight_ranks_on_three_axes(strategy: str) -> None:
    assert_equal(residual(), strategy)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", list(MODELS))
def test_models_of_every_kind(name: str, optimizer: str) -> None:
    assert_equal(work(name, optimizer), "pipeline=2")


@given(
    blocks=st.integers(2, 5),
    degree=st.integers(1, 4),
    micro=st.integers(1, 6),
    way=st.sampled_from(["1f1b", "gpipe", "zb-h1"]),
    clip=st.sampled_from([None, 0.05]),
)
@settings(max_examples=16, deadline=None)
def test_any_pipeline_equals_one_process(
    blocks: int, degree: int, micro: int, way: str, clip: float | None
) -> None:
    made = vector(ResidualMLP(4, 5, 6, blocks, 2), 4).with_(clip_norm=clip)
    assert_equal(made, f"pipeline={degree}", accumulate=micro, **(WAYS[way] if degree > 1 else {}))


class Skips(nn.Module):
    """A long skip connection, a mask for all blocks, and a parameter that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.last = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[:, :1] > 0).to(x.dtype)
        skip = hidden = self.first(x)
        for number, block in enumerate(self.blocks):
            hidden = torch.relu(block(hidden)) * mask
            if number == 1:
                hidden = hidden + skip * self.scale
        return self.last(hidden + skip)


def test_skip_connections_are_carried_along() -> None:
    found = assert_equal(vector(Skips(), 4), "pipeline=3", split_at="blocks.1,blocks.3")
    assert [str(stage.entry) for stage in found.stages[1:]] == ["blocks.1", "blocks.3"]
    carried = [(str(c.source), c.start, c.stop) for c in found.crossings]
    assert carried == [
        ("argument of blocks.1", 0, 1),
        ("result of first", 0, 1),
        ("result of first", 0, 2),
        ("argument of blocks.3", 1, 2),
    ]
    assert found.holders("scale") == (0, 1, 2)
    assert found.holders("blocks.1.weight") == (1,)


def test_a_u_net_is_cut_through_its_skips() -> None:
    net = UNet(4)
    for module in list(net.modules()):
        for attribute, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, attribute, nn.GroupNorm(1, child.num_features))
    found = assert_equal(vector(net, 3, 8, 8, batch=4), "pipeline=2", accumulate=2)
    assert len(found.crossings) > 1


def test_batch_norm_is_exact_with_one_micro_batch_and_the_plan_says_what_that_costs() -> None:
    source = np.random.default_rng(0)
    made = Workload(
        model=DigitsCNN(),  # no factory: ranks that are threads share torch's random state
        data=(source.normal(size=(8, 1, 32, 32)), source.integers(0, 10, 8)),
        batch_size=4,
        dtype="float64",
    )
    found = plan(made, "pipeline=2")
    assert found.batch.accumulate == 1
    assert "nothing is gained" in str(found)
    one, many = (run_on_threads(made, s, 2) for s in ("serial", "pipeline=2"))
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)


def test_there_are_four_micro_batches_for_each_rank_unless_told() -> None:
    made = vector(ResidualMLP(4, 5, 6, 3, 2), 4, batch=20)
    assert plan(made, "pipeline=2").batch.accumulate == 8
    assert plan(made, "data=4,pipeline=2").batch.accumulate == 5
    assert plan(made, "pipeline=2", accumulate=3).batch.accumulate == 3
    assert plan(made, "data=2").batch.accumulate == 1


def test_stages_cost_about_the_same_and_lie_between_blocks() -> None:
    x = np.zeros((8, 64), np.int64)
    made = Workload(model=ByteGPT(32, 4, 6, 64), data=(x, np.zeros((8, 64, 256))), batch_size=8,
                    loss=nn.MSELoss())  # fmt: skip
    found = plan(made, "pipeline=3")
    costs = [stage.cost_flops for stage in found.stages]
    assert max(costs) < 1.3 * min(costs)
    assert all(stage.entry.module.startswith("blocks.") for stage in found.stages[1:])
    assert {c.start for c in found.crossings} == {0, 1}
    assert len(found.crossings) == 2
    # What a stage holds is its own.
    assert found.holders("byte.weight") == (0,)
    assert found.holders("head.weight") == (2,)


@settings(deadline=None)
@given(costs=st.lists(st.integers(0, 20), min_size=1, max_size=8), parts=st.integers(1, 8))
def test_no_division_has_a_cheaper_costliest_part(costs: list[int], parts: int) -> None:
    parts = min(parts, len(costs))
    cuts = balance(costs, parts)

    def worst(places: list[int]) -> int:
        return max(sum(costs[a:b]) for a, b in pairwise([0, *places, len(costs)]))

    every = product(range(1, len(costs)), repeat=parts - 1)
    assert worst(cuts) == min(
        worst(list(places)) for places in every if list(places) == sorted(set(places))
    )


@pytest.mark.parametrize(
    ("model", "strategy", "options", "says"),
    [
        (ResidualMLP(4, 5, 6, 1, 2), "pipeline=9", {}, "can be cut into 7 at most; use pipeline=7"),
        (nn.Linear(4, 2), "pipeline=2", {}, "can be cut into 1 at most; use tensor=2"),
        (nn.Linear(4, 2), "pipeline=2", {"schedule": "zigzag"}, "'1f1b' or 'gpipe'"),
        (residual().model, "pipeline=2", {"chunks": 2}, "does not go with chunks=2; use chunks=1"),
        (
            residual().model,
            "pipeline=2",
            {"schedule": "interleaved", "chunks": 1},
            "use chunks=2",
        ),
        (
            residual().model,
            "pipeline=2",
            {"split_at": "3.upp"},
            "works is split_at='3.up'",
        ),
        (residual().model, "pipeline=2", {"split_at": "2,3"}, "needs 1 names in split_at; got 2"),
        (residual().model, "pipeline=3", {"split_at": "2,2"}, "needs 2 names in split_at; got 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    model: nn.Module, strategy: str, options: dict[str, Any], says: str
) -> None:
    inputs = 6 if isinstance(model, ResidualMLP) and model[0].in_features == 6 else 4
    with pytest.raises(PlanError, match=says):
        plan(vector(model, inputs, batch=20), strategy, **options)


@pytest.mark.parametrize("strategy", ["pipeline=2", "pipeline=3", "data=2,pipeline=2"])
def test_one_pass_of_a_module_of_several_inputs_and_outputs(strategy: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.a(x)
            return self.c(torch.tanh(self.b(hidden)) + z), hidden.sum(-1)

    proof = prove(Two(), torch.randn(4, 4), torch.randn(4, 6), strategy=strategy)
    assert proof.refusal is None


def test_a_module_that_cannot_be_cut_is_refused_by_the_proof() -> None:
    proof = verify(nn.Linear(3, 3), torch.zeros(2, 3), strategy="pipeline=2")
    assert proof.refusal is not None
    assert "use tensor=2" in proof.refusal


def test_a_plan_names_the_bubble_and_the_cut() -> None:
    text = str(plan(residual(), "pipeline=2", accumulate=3))
    assert "ranks wait 25 % of the time at best, (p - 1) / (m + p - 1)" in text
    assert "cut before" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "zb-h1"}, "wait 4 % of the time at best, (p - 1) / (3 m + p - 1)"),
        ({"schedule": "interleaved"}, "wait 6 % of the time at best, (p - 1) / (2 m + p - 1)"),
        ({"schedule": "gpipe"}, "wait 11 % of the time at best, (p - 1) / (m + p - 1)"),
        ({"schedule": "interleaved", "accumulate": 3}, "at best, counted from its actions"),
    ],
)
def test_the_bubble_is_that_of_the_schedule(options: dict[str, Any], says: str) -> None:
    made = vector(ResidualMLP(4, 5, 6, 3, 2), 4, batch=8)
    assert says in str(plan(made, "pipeline=2", **{"accumulate": 8, **options}))


def test_bytes_are_those_of_the_plan_with_losses_of_every_kind() -> None:
    for loss in (nn.MSELoss(reduction="sum"), nn.MSELoss()):
        made = residual().with_(loss=loss)
        assert_equal(made, "pipeline=2")
        assert_bytes(run_on_threads(made, "pipeline=2", 5, accumulate=3))


class MovesToTheDevice(nn.Module):
    """Asks an activation for its device, as code that makes masks and positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        ramp = torch.arange(6, device=h.device)
        if (ramp[1:] > ramp[:-1]).all():
            h = h.to(ramp.device) + h.cpu().to("cpu") * ramp.to(h.dtype)
        return self.c(self.b(h).to(device=ramp.device))


@pytest.mark.parametrize("split_at", ["b", "c"])
def test_code_may_ask_what_an_earlier_stage_made_for_its_device(split_at: str) -> None:
    x = torch.randn(4, 4, dtype=torch.float64)
    proof = verify(MovesToTheDevice().double(), x, strategy="pipeline=2", split_at=split_at)
    assert proof.refusal is None
    assert proof.same_result, str(proof)
