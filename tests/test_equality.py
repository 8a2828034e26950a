"""Every strategy equals serial over a whole run in float64, and sends what its plan says."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from equality import OPTIMIZERS, STEPS, assert_bytes, assert_same, workload
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import run_on_threads
from torch import nn

from workbench.errors import RunError
from workbench.workload import Workload


@given(
    data=st.data(),
    samples=st.integers(6, 30),
    degree=st.integers(1, 4),
    norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    seed=st.integers(0, 3),
)
@settings(max_examples=24, deadline=None)
def test_a_run_equals_serial(
    data: st.DataObject,
    samples: int,
    degree: int,
    norm: bool,
    dropout: float,
    optimizer: str,
    seed: int,
) -> None:
    batch_size = data.draw(st.integers(max(2, degree), min(samples, 12)), "batch size")
    accumulate = data.draw(st.integers(1, 2 if batch_size >= 4 else 1), "accumulate")
    work = workload(samples, batch_size, norm, dropout, optimizer, seed=seed)
    serial = run_on_threads(work, "serial", STEPS, accumulate=accumulate)
    run = run_on_threads(work, f"data={degree}", STEPS, accumulate=accumulate)
    assert_same(run, serial)
    assert_bytes(run)
    assert_bytes(serial)


@pytest.mark.parametrize(
    "strategy",
    [
        *("data=3", "sharded=2", "tensor=2", "pipeline=2", "spatial=3", "channel=2"),
        *("data=2,tensor=2", "sharded=2,pipeline=2", "data=2,spatial=2"),
    ],
)
def test_micro_batches_add_up_under_every_axis(strategy: str) -> None:
    source = np.random.default_rng(1)
    torch.manual_seed(1)
    work = Workload(
        model=nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 6),
            nn.Tanh(),
            nn.Linear(6, 3),
        ),
        data=(source.normal(size=(23, 2, 7, 5)), source.integers(0, 3, 23)),
        test_data=(source.normal(size=(7, 2, 7, 5)), source.integers(0, 3, 7)),
        optimizer=OPTIMIZERS["adam"],
        batch_size=9,
        dtype="float64",
    )
    run = run_on_threads(work, strategy, STEPS, accumulate=4)
    assert_same(run, run_on_threads(work, "serial", STEPS, accumulate=4))
    assert_same(run, run_on_threads(work, "serial", STEPS))
    assert_bytes(run)


def test_serial_is_what_a_user_would_write() -> None:
    """The serial run is plain torch: the same batches, forward, backward, update."""
    work = workload(20, 6)
    run = run_on_threads(work, "serial", STEPS)
    from workbench.order import Order

    x, y = (torch.from_numpy(a.compute()) for a in (work.x, work.y))
    model = work.make_model()
    optimizer = work.make_optimizer(list(model.named_parameters()))
    order = Order(20, 6, work.seed)
    losses = []
    for step in range(STEPS):
        index = torch.from_numpy(order.rows(step, 1, 0)[0].index)
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(run.losses, losses, rtol=1e-12)
    for name, value in model.named_parameters():
        np.testing.assert_allclose(
            run.state[f"parameter:{name}"], value.detach().numpy(), rtol=1e-11, atol=1e-13
        )


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0])),
        nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.1),
    ],
    ids=["sum", "class weights", "ignored label"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_that_are_no_plain_mean(loss: nn.Module, accumulate: int) -> None:
    work = workload(20, 6, loss=loss)
    serial = run_on_threads(work, "serial", STEPS, accumulate=accumulate)
    for degree in (2, 3):
        run = run_on_threads(work, f"data={degree}", STEPS, accumulate=accumulate)
        assert_same(run, serial)
        assert_bytes(run)


def test_local_batch_norm_is_another_computation_and_the_plan_says_so() -> None:
    work = workload(20, 6)
    serial = run_on_threads(work, "serial", STEPS)
    run = run_on_threads(work, "data=2", STEPS, batch_norm="local")
    assert any("not that of the serial run" in note for note in run.plan.notes)
    assert not np.allclose(run.losses, serial.losses, rtol=1e-6)
    assert_bytes(run)


def test_a_stop_told_to_one_rank_stops_all_after_the_same_step() -> None:
    run = run_on_threads(workload(20, 6), "data=3", 50, stop_at_start=1)
    assert [len(o.rows) for o in run.outcomes] == [1, 1, 1]
    assert all(o.stopped for o in run.outcomes)


@pytest.mark.parametrize("strategy", ["serial", "data=2"])
def test_a_loss_that_is_no_number_ends_the_run_on_all_ranks_together(strategy: str) -> None:
    work = workload(20, 6).with_(optimizer=partial(torch.optim.SGD, lr=1e300))
    with pytest.raises(RunError, match=r"not a number any more at step \d"):
        run_on_threads(work, strategy, STEPS)


def test_spans_tile_a_step_and_never_overlap() -> None:
    run = run_on_threads(workload(20, 6), "data=2", STEPS, record_spans=True)
    for outcome in run.outcomes:
        spans = outcome.spans
        assert {s.kind for s in spans} >= {"load", "compute", "comm", "optimizer"}
        assert {s.step for s in spans} == set(range(STEPS))
        for before, after in pairwise(spans):
            assert before.start_s <= before.stop_s <= after.start_s
        sent = sum(s.sent_bytes for s in spans if s.step == 2)
        assert sent == run.plan.sent_bytes(run.outcomes.index(outcome))


def test_a_rank_without_samples_joins_in() -> None:
    """The last batch of an epoch has one sample; the other ranks compute on a stand-in."""
    work = workload(13, 4)
    serial = run_on_threads(work, "serial", 8)
    assert_same(run_on_threads(work, "data=4", 8), serial)
