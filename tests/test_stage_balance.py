"""Stages of a pipeline: balanced by counted or measured cost, within what a rank may keep."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.layer_times import layer_times
from workbench.limits import bytes_of
from workbench.plan.stages import Call
from workbench.planning import plan
from workbench.strategies.pipeline import balance
from workbench.workload import Workload


class Slow(nn.Module):
    """Costs much more time than its numbers let expect, and works in place."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1500):
            x.add_(0.001)
        return x


def of(model: nn.Module, *shape: int, batch: int = 32) -> Workload:
    source = np.random.default_rng(0)
    x = source.normal(size=(3 * batch, *shape))
    with torch.no_grad():
        y = model.double()(torch.from_numpy(x[:2]))
    return Workload(
        model=model.float(),
        data=(x, source.normal(size=(3 * batch, *y.shape[1:]))),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        batch_size=batch,
    )


def slow_at_the_end() -> nn.Module:
    layers = [nn.Linear(8, 8) for _ in range(4)]
    return nn.Sequential(*layers, Slow(), nn.Linear(8, 8), nn.Linear(8, 8))


def convolutions(count: int) -> nn.Module:
    """Alike layers that keep much for the backward pass, and have few weights."""
    return nn.Sequential(*(nn.Conv1d(4, 4, 3, padding=1) for _ in range(count)))


def test_measured_costs_cut_beside_a_layer_that_is_slower_than_counted() -> None:
    made = of(slow_at_the_end(), 8)
    counted = plan(made, "pipeline=2")
    measured = plan(made, "pipeline=2", balance="measured")
    assert counted.stages[0].cost_s is None
    assert "of the work, counted" in str(counted)
    assert counted.stages[1].entry not in (Call("4"), Call("5"))
    assert measured.stages[1].entry in (Call("4"), Call("5"))  # right before it, or after it
    assert all(stage.cost_s > 0 for stage in measured.stages)
    assert "measured here" in str(measured)


def test_a_run_of_measured_stages_gives_the_weights_of_one_process() -> None:
    made = of(slow_at_the_end(), 8).with_(dtype="float64")
    one = run_on_threads(made, "serial", 3, accumulate=4)
    many = run_on_threads(made, "pipeline=2", 3, accumulate=4, balance="measured")
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.twice = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.table(x)))


def test_every_call_of_a_layer_is_timed_and_the_model_stays_as_it_is() -> None:
    model = Shared()
    state = torch.get_rng_state()
    found = layer_times(model, [torch.zeros(9, 4, dtype=torch.long)], 2, {"table", "twice"})
    assert set(found) == {Call("table"), Call("twice"), Call("twice", 1)}
    assert all(seconds > 0 for seconds in found.values())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_does_not_run_on_random_numbers_is_refused() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not this")

    with pytest.raises(PlanError, match=r"\(ValueError: not this\); use balance='counted'"):
        layer_times(Picky(), [torch.zeros(2, 3)], 2, set())


def test_a_stage_that_keeps_more_micro_batches_gets_fewer_layers_where_memory_is_short() -> None:
    made = of(convolutions(8), 4, 64)
    free = plan(made, "pipeline=2")
    tight = plan(made, "pipeline=2", memory_limit=free.bytes_per_rank - 1)
    assert [len(stage.layers) for stage in free.stages] == [4, 4]
    assert [len(stage.layers) for stage in tight.stages] == [3, 5]
    assert tight.bytes_per_rank < free.bytes_per_rank


@pytest.mark.parametrize(
    ("strategy", "options", "part", "use"),
    [
        ("pipeline=2", {"schedule": "gpipe", "accumulate": 8}, 0.97, "use schedule='1f1b'"),
        ("pipeline=2", {"accumulate": 1}, 0.9, "use (recompute='yes'|accumulate=)"),
        ("data=2", {"accumulate": 1}, 0.9, "use accumulate="),
        ("pipeline=2", {}, 0.01, "use memory_limit='"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    strategy: str, options: dict[str, Any], part: float, use: str
) -> None:
    made = of(convolutions(4), 4, 64)
    limit = int(part * plan(made, strategy, **options).bytes_per_rank)
    with pytest.raises(PlanError, match=f"memory_limit='{limit}' allows .*; {use}") as refused:
        plan(made, strategy, memory_limit=limit, **options)
    words = str(refused.value).rpartition("; use ")[2].rstrip(".")
    name, _, value = words.partition("=")
    given = {"memory_limit": str(limit), **options, name: value.strip("'")}
    given = {k: int(v) if k == "accumulate" else v for k, v in given.items()}
    assert plan(made, strategy, **given).bytes_per_rank <= bytes_of(given["memory_limit"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("2 GiB", 2 << 30), ("512MB", 512_000_000), ("1.5 kib", 1536), ("77", 77), ("1 T", 10**12)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["much", "-3 MB", "0", "2 GiB or so"])
def test_a_limit_that_is_no_size_is_refused(text: str) -> None:
    made = of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 2)
    with pytest.raises(PlanError, match="must be bytes, such as '2 GiB'"):
        plan(made, "pipeline=2", memory_limit=text)


def test_no_division_is_given_where_none_fits() -> None:
    assert balance([3, 3, 3, 3], 2, lambda part, begin, end: end - begin <= 2) == [2]
    assert balance([9, 1, 1, 1], 2, lambda part, begin, end: part or end - begin >= 2) == [2]
    assert balance([3, 3, 3], 2, lambda part, begin, end: end - begin <= 1) is None
