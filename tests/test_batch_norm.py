"""BatchNorm over a batch whose samples and positions are cut over ranks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from equality import STEPS, assert_bytes, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_threads import check_layer
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.layers import batch_norm
from workbench.verify import verify
from workbench.workload import Workload

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@settings(deadline=None, max_examples=60)
@given(
    sides=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    ranks=st.sampled_from((1, 2, 3, 5, "2x2")),
    data=st.sampled_from((1, 2, 3)),
    affine=st.booleans(),
    running=st.booleans(),
    momentum=st.sampled_from((0.1, None)),
    training=st.booleans(),
)
def test_statistics_of_samples_and_positions_together(
    sides: list[int],
    ranks: int | str,
    data: int,
    affine: bool,
    running: bool,
    momentum: float | None,
    training: bool,
) -> None:
    """Ranks may have uneven shares, or nothing."""
    ranks = 2 if len(sides) == 1 and isinstance(ranks, str) else ranks
    kind = NORMS[len(sides) - 1]
    norm = kind(3, affine=affine, track_running_stats=running, momentum=momentum)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 3, *sides) * 2 + 1
    assert check_layer(norm.train(training), x, spatial=ranks, data=data) < 1e-10


class Net(nn.Module):
    def __init__(self, norm: nn.Module, flat: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1, bias=False), norm
        self.flat, self.flatten = flat or nn.Identity(), nn.Flatten()
        self.head = nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.flatten(torch.relu(self.norm(self.conv(x))))))


def workload(model: nn.Module, samples: int, batch_size: int) -> Workload:
    source = np.random.default_rng(0)
    return Workload(
        model=model,
        data=(source.normal(size=(samples, 1, 4, 4)), source.integers(0, 4, samples)),
        test_data=(source.normal(size=(7, 1, 4, 4)), source.integers(0, 4, 7)),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        batch_size=batch_size,
        dtype="float64",
    )


@pytest.mark.parametrize(
    "strategy", ["spatial=2", "spatial=3", "data=2,spatial=2", "data=4,spatial=2"]
)
def test_training_with_stand_ins(strategy: str) -> None:
    """The last batch has one sample, so that all but one of the replicas have none."""
    work = workload(Net(nn.BatchNorm2d(3)), samples=13, batch_size=4)
    assert_same(run_on_threads(work, strategy, STEPS), run_on_threads(work, "serial", STEPS))


def test_micro_batches_have_their_own_statistics() -> None:
    work = workload(Net(nn.BatchNorm2d(3)), samples=12, batch_size=6)
    serial = run_on_threads(work, "serial", STEPS, accumulate=2)
    run = run_on_threads(work, "data=2,spatial=2", STEPS, accumulate=2)
    assert_same(run, serial)
    assert_bytes(run)


def test_features_that_were_flattened_are_whole_again() -> None:
    work = workload(Net(nn.BatchNorm2d(3), nn.BatchNorm1d(48)), samples=12, batch_size=4)
    run = run_on_threads(work, "spatial=2", STEPS)
    assert_same(run, run_on_threads(work, "serial", STEPS))
    assert_bytes(run)


def test_torchs_synchronized_one_is_served_on_a_cpu() -> None:
    x = torch.randn(3, 4, 5, 2)
    for strategy in ("data=2", "spatial=2", "data=3,spatial=2"):
        proof = verify(nn.SyncBatchNorm(4), x, strategy=strategy)
        assert proof.same_result, proof
        assert proof.sent_bytes == proof.predicted_bytes


def test_local_statistics_are_those_of_a_replica_and_not_of_a_part_of_an_image() -> None:
    work = workload(Net(nn.BatchNorm2d(3)), samples=13, batch_size=4)
    both = run_on_threads(work, "data=3,spatial=2", STEPS, batch_norm="local")
    data = run_on_threads(work, "data=3", STEPS, batch_norm="local")
    np.testing.assert_allclose(both.losses, data.losses, rtol=1e-10)
    assert not np.allclose(data.losses, run_on_threads(work, "serial", STEPS).losses, rtol=1e-6)


def test_a_weight_that_is_computed_anew_is_read_at_each_call() -> None:
    norm = nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3), dim=0)
    nn.init.normal_(norm.parametrizations.weight.original0)
    proof = verify(norm, torch.randn(2, 3, 4, 4), strategy="data=2,spatial=2")
    assert proof.same_result, proof


def test_numbers_for_each_position_are_refused() -> None:
    with pytest.raises(PlanError, match="BatchNorm1d has numbers for each position"):
        check_layer(nn.BatchNorm1d(6), torch.randn(4, 6))


def test_frozen_layers_without_a_gradient_send_none_back() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3).requires_grad_(False)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.detach()) * self.scale

    proof = verify(Frozen(), torch.randn(4, 3, 5, 2), strategy="data=2,spatial=2")
    assert proof.same_result, proof
    assert proof.sent_bytes == proof.predicted_bytes


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 5, 4)])
def test_what_a_gpu_computes_is_what_the_kernel_of_the_cpu_does(shape: tuple[int, ...]) -> None:
    grad, x = torch.randn(2, *shape, dtype=torch.float64)
    mean, variance = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    ours = batch_norm._sums_in_words(grad, x, mean, variance, 1e-5)
    for got, want in zip(ours, batch_norm._sums(grad, x, mean, variance, 1e-5), strict=True):
        torch.testing.assert_close(got, want)
