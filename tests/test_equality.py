"""Every strategy equals serial over a whole run in float64, and sends what its plan says."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import ThreadRun, run_on_threads
from torch import Tensor, nn

from workbench.errors import RunError
from workbench.workload import Workload

STEPS = 5


class Net(nn.Module):
    """What makes a cut batch hard: batch statistics, dropout, odd parameters."""

    def __init__(self, norm: bool, dropout: float) -> None:
        super().__init__()
        # A bias before BatchNorm has a gradient of exactly zero, which Adam blows up from rounding.
        self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(3 * 16, 4)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.norm(self.conv(x))))
        return self.head(hidden.flatten(1)) * self.scale + self.frozen.sum()


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def workload(
    samples: int,
    batch_size: int,
    norm: bool = True,
    dropout: float = 0.0,
    optimizer: str = "sgd",
    loss: nn.Module | None = None,
    seed: int = 0,
) -> Workload:
    source = np.random.default_rng(seed)
    torch.manual_seed(seed)
    return Workload(
        model=Net(norm, dropout),  # no factory: ranks that are threads share torch's random state
        data=(source.normal(size=(samples, 1, 4, 4)), source.integers(0, 4, samples)),
        test_data=(source.normal(size=(7, 1, 4, 4)), source.integers(0, 4, 7)),
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=OPTIMIZERS[optimizer],
        batch_size=batch_size,
        seed=seed,
        dtype="float64",
    )


def assert_same(got: ThreadRun, want: ThreadRun) -> None:
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-10, atol=1e-12)
    assert got.state.keys() == want.state.keys()
    for name, value in want.state.items():
        np.testing.assert_allclose(got.state[name], value, rtol=1e-10, atol=1e-11, err_msg=name)
    score, expected = got.outcomes[0].score, want.outcomes[0].score
    assert score is not None
    assert expected is not None
    assert score.accuracy == expected.accuracy
    assert score.loss == pytest.approx(expected.loss, rel=1e-10)


def assert_bytes(run: ThreadRun) -> None:
    """Counted bytes are those of the plan, as integers, on every rank in every full batch."""
    batch = run.plan.batch
    full = [
        step % -(-batch.samples // batch.size) < batch.samples // batch.size
        for step in range(STEPS)
    ]
    for rank, outcome in enumerate(run.outcomes):
        sent = {
            row["sent_bytes"] for row, is_full in zip(outcome.rows, full, strict=True) if is_full
        }
        assert sent == {run.plan.sent_bytes(rank)}
        assert all(row["sent_bytes"] <= run.plan.sent_bytes(rank) for row in outcome.rows)


@given(
    data=st.data(),
    samples=st.integers(6, 30),
    degree=st.integers(1, 4),
    norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
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


def test_a_loss_that_is_no_number_ends_the_run_on_all_ranks_together() -> None:
    work = workload(20, 6).with_(optimizer=partial(torch.optim.SGD, lr=1e300))
    with pytest.raises(RunError, match=r"not a number any more at step \d"):
        run_on_threads(work, "data=2", STEPS)


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


class Through(nn.Module):
    """A chain of layers around a part that the test is about."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(16, 6), part, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.first(x.flatten(1))))


class PerToken(nn.Module):
    """Drops entries where samples and tokens are one dim, as many transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.reshape(-1, 2)).reshape(x.shape)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(input=self.norm(input=x))


@pytest.mark.parametrize(
    "part",
    [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3), nn.Dropout(0.3, True), PerToken()],
    ids=["alpha", "feature alpha", "in place", "samples and tokens in one dim"],
)
def test_every_dropout_draws_the_serial_mask(part: nn.Module) -> None:
    work = workload(20, 6).with_(model=Through(part))
    serial = run_on_threads(work, "serial", STEPS)
    for degree in (2, 3):
        assert_same(run_on_threads(work, f"data={degree}", STEPS), serial)


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    from workbench.layers.dropout import ShareDropout
    from workbench.layers.share import Share

    x = torch.randn(400, 500, dtype=torch.float64)
    y = ShareDropout(nn.AlphaDropout(0.3), 0, Share(rows=400))(x)
    assert abs(float(y.mean())) < 0.02
    assert float(y.var()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.filterwarnings("ignore")
def test_dropout_that_is_computed_again_in_backward_has_the_same_mask() -> None:
    class Again(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.drop, self.last = nn.Linear(16, 6), nn.Dropout(0.4), nn.Linear(6, 4)
            self.again = again

        def part(self, x: Tensor) -> Tensor:
            return self.drop(torch.relu(self.first(self.drop(x))))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            if self.again and not x.is_meta:
                x = torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)
            else:
                x = self.part(x)
            return self.last(self.drop(x))

    runs = [
        run_on_threads(workload(20, 6).with_(model=Again(again)), "serial", STEPS)
        for again in (False, True)
    ]
    np.testing.assert_allclose(runs[1].losses, runs[0].losses, rtol=1e-12)


def test_layers_may_be_called_by_keyword() -> None:
    work = workload(20, 6).with_(model=Through(ByKeyword()))
    serial = run_on_threads(work, "serial", STEPS)
    run = run_on_threads(work, "data=2", STEPS)
    assert_same(run, serial)
    assert_bytes(run)


class WithAux(nn.Module):
    """Has an output that the loss leaves out, so that its parameters never have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.aux = nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(x.flatten(1)), "aux": self.aux(x.flatten(1))}


def logits_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], targets)


def test_a_stand_in_gives_no_parameter_a_gradient() -> None:
    """Weight decay must not touch what the serial run leaves alone."""
    work = workload(13, 4).with_(model=WithAux(), loss=logits_loss)
    serial = run_on_threads(work, "serial", 8)
    assert_same(run_on_threads(work, "data=4", 8), serial)


class InADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(x.flatten(1))}


def test_a_model_may_give_one_tensor_in_a_dict() -> None:
    work = workload(20, 6).with_(model=InADict(), loss=logits_loss)
    run = run_on_threads(work, "data=2", STEPS)
    assert_same(run, run_on_threads(work, "serial", STEPS))
    assert any("not one tensor" in note for note in run.plan.notes)


def test_scoring_asks_nothing_of_the_other_ranks() -> None:
    """They may have another number of passes to make; here one of them has twice as many."""
    source = np.random.default_rng(1)
    test = (source.normal(size=(513, 1, 4, 4)), source.integers(0, 4, 513))
    part = nn.BatchNorm1d(6, track_running_stats=False)
    work = workload(20, 6).with_(model=Through(part), test_data=test)
    score = run_on_threads(work, "data=2", STEPS).outcomes[0].score
    assert score is not None
    assert score.samples == 513


def test_torchs_synchronized_batch_norm_can_be_local() -> None:
    work = workload(21, 7).with_(model=Through(nn.SyncBatchNorm(6)))
    serial = run_on_threads(work, "serial", STEPS)
    assert_same(run_on_threads(work, "data=2", STEPS), serial)
    local = run_on_threads(work, "data=2", STEPS, batch_norm="local")
    assert_bytes(local)
    assert not np.allclose(local.losses, serial.losses, rtol=1e-6)


def test_one_number_per_channel_is_refused_by_all_ranks_as_by_torch() -> None:
    work = workload(13, 4).with_(model=Through(nn.BatchNorm1d(6)))
    for strategy in ("serial", "data=3"):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            run_on_threads(work, strategy, STEPS)


class Halves(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input * 0.5


class Doubles(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_layer_with_a_forward_of_its_own_stays() -> None:
    from workbench.comm.threads import run_threads
    from workbench.layers.share import Share
    from workbench.layers.swap import parallelize
    from workbench.planning import plan

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), Halves(), Doubles(4))
    planned = plan(workload(20, 6).with_(model=model), "data=2")
    run_threads(2, lambda comm: parallelize(model, planned, comm, Share()))
    assert isinstance(model[2], Halves)
    assert isinstance(model[3], Doubles)


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_a_seed_may_be_huge(seed: int) -> None:
    work = workload(20, 6, dropout=0.3).with_(seed=seed)
    assert_same(run_on_threads(work, "data=2", STEPS), run_on_threads(work, "serial", STEPS))


def test_accuracy_leaves_out_what_the_loss_leaves_out_and_knows_the_dim_of_classes() -> None:
    from workbench.comm.connect import SoloComm
    from workbench.losses import NextByteLoss
    from workbench.scoring import score

    logits = torch.zeros(2, 3, 3)  # as many positions as classes
    logits[:, 0, 1] = logits[:, 1, 2] = logits[:, 2, 2] = 1.0
    targets = np.array([[1, 2, -1], [1, 0, -1]])
    found = score(
        nn.Identity(),
        NextByteLoss(ignore_index=-1),
        "weighted",
        {"test_x": logits.numpy(), "test_y": targets},
        SoloComm(),
        torch.device("cpu"),
    )
    assert found.accuracy == 0.75


def test_a_stopped_run_has_the_spans_of_every_rank() -> None:
    run = run_on_threads(workload(20, 6), "data=2", 50, stop_at_start=1, record_spans=True)
    for outcome in run.outcomes:
        assert {span.step for span in outcome.spans} == {0}
        assert "optimizer" in {span.kind for span in outcome.spans}
