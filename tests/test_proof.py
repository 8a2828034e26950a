"""The proof: every strategy and many hybrids train as one process does, and send what they plan.

Float64, ranks as threads, five steps with a short batch among them, sizes that do not divide. The
loss of each step, all weights, buffers and the optimizer's state are compared; bytes are integers.
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from equality import STEPS, assert_bytes
from rank_threads import ThreadRun, run_on_threads
from torch import nn

from workbench.errors import PlanError
from workbench.planning import plan
from workbench.strategies import STRATEGIES
from workbench.strategies.notation import parse
from workbench.workload import Workload

OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


def images() -> nn.Module:
    """Convolutions, statistics of the batch, dropout, and a perceptron."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(5, 7, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(7, 3, 3, padding=1),
        nn.Flatten(),
        nn.Linear(3 * 4 * 3, 7),
        nn.GELU(),
        nn.Linear(7, 3),
    )


def sequences() -> nn.Module:
    """Attention by three heads, norms, dropout, and perceptrons."""
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.ReLU(),
        nn.TransformerEncoderLayer(12, 3, 10, 0.2, batch_first=True),
        nn.Linear(12, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    )


MODELS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "images": (images, (2, 7, 6), (3,)),
    "sequences": (sequences, (5, 6), (5, 3)),
}

ALONE = [f"{axis}={degree}" for axis in STRATEGIES for degree in (1, 2, 3)]
BOTH = [
    "data=2,sharded=2",
    "data=2,pipeline=2",
    "data=2,tensor=2",
    "data=3,tensor=2",
    "sharded=2,pipeline=2",
    "sharded=2,tensor=2",
    "sharded=3,tensor=2",
    "pipeline=2,tensor=2",
    "pipeline=2,tensor=3",
    "data=3,pipeline=2",
    "data=2,sharded=2,tensor=2",
    "data=2,sharded=2,pipeline=2",
    "data=2,pipeline=2,tensor=2",
    "sharded=2,pipeline=2,tensor=2",
]
OF_IMAGES = [
    "data=2,spatial=2",
    "data=2,spatial=2x2",
    "data=2,channel=2",
    "sharded=2,spatial=2",
    "sharded=2,channel=3",
    "data=2,sharded=2,spatial=2",
    "pipeline=2,spatial=2",
    "pipeline=2,spatial=2x2",
    "pipeline=3,spatial=2",
    "pipeline=2,channel=2",
    "data=2,pipeline=2,spatial=2",
    "sharded=2,pipeline=2,spatial=2",
    "tensor=2,spatial=2",
    "tensor=3,spatial=2",
    "channel=2,spatial=2x2",
    "data=2,tensor=2,spatial=2",
    "sharded=2,tensor=2,spatial=2",
    "pipeline=2,channel=2,spatial=2",
    "tensor=2,channel=2",
    "tensor=2,channel=3",
    "data=2,tensor=2,channel=2",
    "pipeline=2,tensor=2,channel=2",
    "tensor=2,channel=2,spatial=2",
    "data=2,sharded=2,channel=2",
]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"accumulate": 3},
    "clipped": {"accumulate": 2, "clip_norm": 0.1},
}
IMAGES = [*ALONE, *BOTH, *OF_IMAGES]
SEQUENCES = [s for s in (*ALONE, *BOTH) if not re.search("spatial|channel|=1", s)]
# Each with both optimizers, in two of the three ways.
CASES = [
    (model, strategy, optimizer)
    for model, strategies in (("images", IMAGES), ("sequences", SEQUENCES))
    for strategy in strategies
    for optimizer in OPTIMIZERS
]


@cache
def workload(model: str, optimizer: str, clip_norm: float | None) -> Workload:
    make, sample, target = MODELS[model]
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    return Workload(
        model=make(),
        data=(source.normal(size=(14, *sample)), source.normal(size=(14, *target))),
        loss=nn.MSELoss(),
        optimizer=OPTIMIZERS[optimizer],
        batch_size=6,
        dtype="float64",
        clip_norm=clip_norm,
    )


@cache
def alone(model: str, optimizer: str, way: str) -> ThreadRun:
    return trained(model, optimizer, way, "serial")


def trained(model: str, optimizer: str, way: str, strategy: str) -> ThreadRun:
    options = dict(WAYS[way])
    work = workload(model, optimizer, options.pop("clip_norm", None))
    # A pipeline has as many micro-batches as it likes when nobody says how many.
    return run_on_threads(work, strategy, STEPS, **{"accumulate": 1} | options)


def test_hybrids_are_many_and_every_axis_is_in_some() -> None:
    meshes = [parse(strategy) for strategy in {*BOTH, *OF_IMAGES}]
    assert len(meshes) >= 12
    assert max(mesh.size for mesh in meshes) == 8
    assert {axis for mesh in meshes for axis, _ in mesh.axes} == set(STRATEGIES)


@pytest.mark.parametrize(("model", "strategy", "optimizer"), CASES)
def test_training_is_that_of_one_process(model: str, strategy: str, optimizer: str) -> None:
    way = list(WAYS)[CASES.index((model, strategy, optimizer)) % len(WAYS)]
    one, many = alone(model, optimizer, way), trained(model, optimizer, way, strategy)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-9)
    assert many.state.keys() == one.state.keys()
    assert {kind.partition(":")[0] for kind in one.state} >= {"parameter", "optimizer"}
    for name, value in one.state.items():
        np.testing.assert_allclose(many.state[name], value, rtol=0, atol=1e-9, err_msg=name)
    assert_bytes(many)


def test_a_model_without_convolutions_has_nothing_for_channel() -> None:
    with pytest.raises(PlanError, match="none; use data=2,tensor=2, or tensor=4 for its"):
        plan(workload("sequences", "adam", None), "tensor=2,channel=2")
