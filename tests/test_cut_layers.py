"""Layers and models that are hard to cut: dropout, BatchNorm, outputs, stand-ins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from equality import STEPS, assert_bytes, assert_same, workload
from rank_threads import run_on_threads
from torch import Tensor, nn


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
    assert run.plan.option("loss", "") == "weighted"


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
    from workbench.layers.groups import Groups
    from workbench.layers.share import Share
    from workbench.layers.swap import parallelize
    from workbench.planning import plan

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), Halves(), Doubles(4))
    planned = plan(workload(20, 6).with_(model=model), "data=2")
    run_threads(2, lambda comm: parallelize(model, planned, Groups(comm, planned.mesh), Share()))
    assert all("forward" not in vars(layer) for layer in model)


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
