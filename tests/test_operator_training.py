"""Training under operator parallelism where the loss or the batch makes it hard."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from equality import STEPS, assert_bytes, assert_same
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.planning import plan
from workbench.workload import Workload

STRATEGIES = (
    *("spatial=2", "spatial=3", "spatial=2x2", "data=2,spatial=2", "channel=2"),
    *("tensor=2,spatial=2", "channel=2,spatial=2x2", "pipeline=2,spatial=2"),
)


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 3, 3, padding=1),
    )


def contrast(output: Tensor, target: Tensor) -> Tensor:
    """A loss that needs all positions of a sample at once."""
    over = [1, 2, 3]
    return ((output - target).square().mean(over) / (1 + target.var(over))).mean()


def work(loss: object, labels: bool, optimizer: str = "SGD") -> Workload:
    source = np.random.default_rng(1)
    x = source.normal(size=(8, 3, 7, 6))
    y = source.integers(0, 3, (8, 7, 6)) if labels else source.normal(size=(8, 3, 7, 6))
    y = np.where(source.random((8, 7, 6)) < 0.2, 1, y) if labels else y
    return Workload(
        model=segmenter(),
        data=(x, y),
        test_data=(x[:3], y[:3]),
        loss=loss,  # type: ignore[arg-type]
        optimizer=partial(getattr(torch.optim, optimizer), lr=0.05),
        batch_size=3,
        dtype="float64",
    )


LOSSES = {
    "classes": (nn.CrossEntropyLoss(), True),
    "weighted, one class left out": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=1),
        True,
    ),
    "sum": (nn.MSELoss(reduction="sum"), False),
    "needs all positions": (contrast, False),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_gives_the_serial_run(loss: str, strategy: str) -> None:
    subject = work(*LOSSES[loss])
    if loss == "sum":
        subject = subject.with_(optimizer=partial(torch.optim.SGD, lr=1e-4))
    run = run_on_threads(subject, strategy, STEPS)
    assert_same(run, run_on_threads(subject, "serial", STEPS))
    assert_bytes(run)


def test_an_output_that_the_loss_needs_whole_is_gathered() -> None:
    found = plan(work(contrast, False), "spatial=2")
    assert found.made
    assert not found.output
    assert any(c.name == "output: whole" for c in found.collectives)
    assert any("gathered" in note for note in found.notes)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_accumulation_equals_serial(strategy: str) -> None:
    subject = work(nn.CrossEntropyLoss(), True)
    run = run_on_threads(subject, strategy, STEPS, accumulate=2)
    assert_same(run, run_on_threads(subject, "serial", STEPS, accumulate=2))


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RMSprop"])
def test_optimizer_state_of_shares_equals_that_of_the_whole(optimizer: str) -> None:
    subject = work(nn.CrossEntropyLoss(), True, optimizer)
    serial = run_on_threads(subject, "serial", STEPS)
    run = run_on_threads(subject, "channel=2", STEPS)
    np.testing.assert_allclose(run.losses, serial.losses, rtol=1e-8)
    for name, value in serial.state.items():
        np.testing.assert_allclose(run.state[name], value, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("strategy", "options", "says"),
    [
        ("spatial=2", {"spatial_dims": 7}, "has no dim 7; its last is 3"),
        ("spatial=2", {"spatial_dims": "height"}, "does not name dims of the input"),
        ("spatial=2x2x2", {}, "along 3 dims.*has 2 to cut; use spatial=8"),
        ("spatial=2x2", {"spatial_dims": 2}, "names 1; write spatial=2"),
        ("spatial=2", {"fallback": "x"}, "fallback='x' is not one of its choices"),
        ("channel=7", {}, "nearest is channel=4"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    strategy: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        plan(work(nn.CrossEntropyLoss(), True), strategy, **options)


def test_more_ranks_than_rows_are_allowed_and_said() -> None:
    subject = work(nn.CrossEntropyLoss(), True)
    found = plan(subject, "spatial=9", spatial_dims=2)
    assert any("2 of 9 ranks own nothing of dim 2" in note for note in found.notes)
    run = run_on_threads(subject, "spatial=9", 2, spatial_dims=2)
    assert_same(run, run_on_threads(subject, "serial", 2))
