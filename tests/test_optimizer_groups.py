"""Groups of an optimizer are those of the whole parameters, however ranks share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import nn
from torch.optim import Optimizer

from workbench.workload import Workload

# What sorts parameters: of 6 x 4 whole and 3 x 4 or 2 x 4 in shares, the answers differ.
CHOICES: dict[str, Callable[[nn.Parameter], bool]] = {
    "by size": lambda p: p.numel() > 20,
    "by value": lambda p: float(p.detach().abs().sum()) > 3.0,
}


def grouped(chosen: Callable[[nn.Parameter], bool], kind: Any, parameters: Any) -> Optimizer:
    every = list(parameters)
    made: Optimizer = kind(
        [
            {"params": [p for p in every if chosen(p)], "weight_decay": 0.2},
            {"params": [p for p in every if not chosen(p)], "lr": 0.002},
        ]
    )
    return made


def work(optimizer: Any) -> Workload:
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    return Workload(
        model=nn.Sequential(
            nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
        ),
        data=(source.normal(size=(12, 4)), source.integers(0, 3, 12)),
        optimizer=optimizer,
        batch_size=6,
        dtype="float64",
    )


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("sharded=2", {"stage": 1}),
        ("sharded=3", {"stage": 3}),
        ("tensor=2", {}),
        ("sharded=2,tensor=2", {}),
        ("pipeline=2", {}),
    ],
)
def test_a_group_is_chosen_by_whole_parameters(
    name: str, strategy: str, options: dict[str, Any]
) -> None:
    made = work(partial(grouped, CHOICES[name], partial(torch.optim.AdamW, lr=0.01)))
    one, many = run_on_threads(made, "serial", 5), run_on_threads(made, strategy, 5, **options)
    assert many.state.keys() == one.state.keys()
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("strategy", ["sharded=2", "tensor=2", "sharded=2,tensor=2"])
def test_state_that_an_optimizer_has_from_the_start_is_shared(strategy: str) -> None:
    made = work(partial(torch.optim.Adagrad, lr=0.05, initial_accumulator_value=0.1))
    one, many = run_on_threads(made, "serial", 5), run_on_threads(made, strategy, 5)
    assert many.state.keys() == one.state.keys()
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)


def test_a_stage_without_parameters_has_nothing_to_update() -> None:
    source = np.random.default_rng(0)
    made = Workload(
        model=nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.ReLU()),
        data=(source.normal(size=(8, 4)), source.integers(0, 3, 8)),
        batch_size=4,
        dtype="float64",
    )
    one = run_on_threads(made, "serial", 5)
    many = run_on_threads(made, "pipeline=2", 5, split_at="1")
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
