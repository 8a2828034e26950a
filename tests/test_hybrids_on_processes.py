"""Hybrids on ranks that are processes of their own: four of them, on two axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from workbench.cluster.lab import Lab

pytestmark = pytest.mark.timeout(110)


@pytest.fixture(scope="module")
def four() -> Iterator[Lab]:
    with wb.start(workers=4, threads=1) as opened:
        yield opened


def made() -> wb.Workload:
    torch.manual_seed(0)
    source = np.random.default_rng(0)
    return wb.Workload(
        model=nn.Sequential(
            nn.Linear(6, 12),
            nn.Tanh(),
            nn.Linear(12, 12),
            nn.Dropout(0.2),
            nn.Linear(12, 7),
            nn.GELU(),
            nn.Linear(7, 3),
        ),
        data=(source.normal(size=(22, 6)), source.integers(0, 3, 22)),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        batch_size=8,
        dtype="float64",
    )


def of_images() -> wb.Workload:
    torch.manual_seed(0)
    source = np.random.default_rng(0)
    return wb.Workload(
        model=nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3, stride=2, padding=1),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(4 * 4 * 3, 7),
            nn.Tanh(),
            nn.Linear(7, 3),
        ),
        data=(source.normal(size=(22, 2, 7, 6)), source.integers(0, 3, 22)),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        batch_size=8,
        dtype="float64",
    )


@pytest.mark.parametrize(
    ("make", "strategy"),
    [
        (made, "data=2,tensor=2"),
        (made, "data=2,pipeline=2"),
        (made, "sharded=2,tensor=2"),
        (of_images, "pipeline=2,spatial=2"),
        (of_images, "tensor=2,spatial=2"),
    ],
)
def test_four_ranks_train_as_one_does(
    four: Lab, make: Callable[[], wb.Workload], strategy: str
) -> None:
    work = make()
    one = wb.run(work, "serial", steps=5, lab=four, accumulate=2).wait(50)
    run = wb.run(work, strategy, steps=5, lab=four, accumulate=2).wait(50)
    assert len({rank.pid for rank in run.ranks}) == 4
    for name, value in one.parameters.items():
        np.testing.assert_allclose(
            run.parameters[name].compute(), value.compute(), rtol=0, atol=1e-9, err_msg=name
        )
    full = [row for row in run.history if row["step"] % 3 < 2]
    assert {row["sent_bytes"] for row in full} == {run.plan.bytes_per_step}
