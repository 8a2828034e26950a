"""Whole networks cut in space or in channels against serial: a pass, and five training steps."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from equality import STEPS, assert_bytes, assert_same
from networks import NETWORKS
from operator_cases import prove
from rank_threads import run_on_threads
from torch import nn

from workbench.workload import Workload

STRATEGIES = (
    *("spatial=2", "spatial=3", "spatial=4", "data=2,spatial=2"),
    *("channel=2", "channel=3", "channel=4", "data=2,channel=2"),
)


def network(name: str, samples: int = 8, batch_size: int = 3) -> Workload:
    """Return a workload of random images in float64; the last batch is short."""
    make, shape, classes = NETWORKS[name]
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    x = source.normal(size=(samples, *shape))
    y = source.integers(0, 3, samples) if classes else source.normal(size=(samples, *shape))
    return Workload(
        model=make(),
        data=(x, y),
        test_data=(x[:3], y[:3]),
        loss=nn.CrossEntropyLoss() if classes else nn.MSELoss(),
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        batch_size=batch_size,
        dtype="float64",
    )


@pytest.mark.parametrize("strategy", [*STRATEGIES, "spatial=2x2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_of_a_network_equals_serial(name: str, strategy: str) -> None:
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    proof = prove(make(), torch.randn(2, *shape, dtype=torch.float64), strategy=strategy)
    assert proof.refusal is None


@pytest.mark.parametrize("name", NETWORKS)
def test_training_a_network_equals_serial(name: str) -> None:
    work = network(name)
    serial = run_on_threads(work, "serial", STEPS)
    for strategy in ("spatial=3", "channel=3", "data=2,spatial=2", "data=2,channel=2"):
        run = run_on_threads(work, strategy, STEPS)
        assert_same(run, serial)
        assert_bytes(run)
