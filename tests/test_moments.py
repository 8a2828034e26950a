"""Norms by the moments of a sample, and softmax, over positions that are cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_threads import check_layer
from torch import Tensor, nn

from workbench.verify import verify


def norms(shape: tuple[int, ...]) -> list[nn.Module]:
    """Return norms that take an array of ``shape``, with 4 channels."""
    instance = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[len(shape)]
    found: list[nn.Module] = [
        nn.GroupNorm(2, 4),
        nn.GroupNorm(1, 4, affine=False),
        instance(4),
        instance(4, affine=True, track_running_stats=True),
        instance(4, track_running_stats=True, momentum=None),  # type: ignore[arg-type]
        instance(4, affine=True, track_running_stats=True).eval(),
        nn.LayerNorm(shape[1:]),
        nn.LayerNorm(shape[-1:], bias=False),
        nn.LayerNorm(shape[2:], elementwise_affine=False),
        nn.RMSNorm(shape[2:]),
        nn.RMSNorm(shape[-1:], eps=1e-3),
        nn.LocalResponseNorm(3),
    ]
    return found


def softmaxes(dims: int) -> list[nn.Module]:
    found = [
        kind(dim) for kind in (nn.Softmax, nn.LogSoftmax, nn.Softmin) for dim in range(1, dims)
    ]
    return [*found, nn.Softmax(-1), *([nn.Softmax2d(), nn.CrossMapLRN2d(3)] if dims == 4 else [])]


@settings(deadline=None, max_examples=60)
@given(draw=st.data(), data=st.sampled_from((1, 1, 2)))
def test_moments_of_a_cut_array(draw: st.DataObject, data: int) -> None:
    """With few rows some ranks have none."""
    sides = draw.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    shape = (draw.draw(st.integers(2, 3)), 4, *sides)
    grids = [2, 3, 5] + ["2x2", "3x2"] * (len(sides) > 1)
    grid = draw.draw(st.sampled_from(grids))
    if torch.Size(sides).numel() == 1:
        sides[0], shape = 2, (shape[0], 4, 2, *sides[1:])  # torch wants two numbers for a variance
    module = draw.draw(st.sampled_from([*norms(shape), *softmaxes(len(shape))]))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape) * 3 + 5
    assert check_layer(module, x, spatial=grid, data=data) < 1e-10


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_is_taken_off_before_squaring(ranks: int) -> None:
    """A difference of sums of squares would lose every digit here."""
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64) + 1e7
    for module in (nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm((6, 5))):
        proof = verify(module, x, strategy=f"spatial={ranks}")
        assert proof.outputs is not None
        assert proof.outputs < 1e-7


def test_exponentials_do_not_overflow() -> None:
    x = torch.randn(2, 3, 6) * 1e4
    for kind in (nn.Softmax, nn.LogSoftmax, nn.Softmin):
        assert check_layer(kind(2), x, spatial=3) < 1e-10


@pytest.mark.parametrize("kind", [nn.Softmax, nn.LogSoftmax])
def test_entries_that_are_masked_out(kind: type[nn.Softmax]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.softmax = kind(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.softmax(x.masked_fill(x < 0, -torch.inf)).clamp(min=-50)

    x = torch.randn(2, 3, 6)
    x[:, :, :3] = -1.0  # a rank has nothing but these
    x[:, :, 3] = 1.0
    assert verify(Masked(), x, strategy="spatial=2").same_result


def test_dims_that_are_not_normalised_need_nobody() -> None:
    x = torch.randn(2, 3, 6, 4)
    for module in (nn.LayerNorm(4), nn.RMSNorm(4), nn.Softmax(3), nn.Softmax2d()):
        proof = verify(module, x, strategy="spatial=2", spatial_dims=2)
        assert proof.same_result
        weights = sum(p.numel() for p in module.parameters())
        arrived = sum(1 for _ in module.parameters())
        assert sum(proof.sent_bytes) == 2 * 8 * (weights + arrived)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.GroupNorm(2, 4), "statistics over channels"),
        (nn.LocalResponseNorm(3), "neighbouring channels"),
        (nn.InstanceNorm1d(4, affine=True), "numbers for each position"),
    ],
)
def test_channels_that_are_cut_are_refused(module: nn.Module, reason: str) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = module

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.transpose(1, 2))

    proof = verify(Turned(), torch.randn(2, 3, 4), strategy="spatial=2")
    assert proof.refusal is not None
    assert reason in proof.refusal


def test_running_statistics_of_replicas_are_those_of_the_batch() -> None:
    module = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    x = torch.randn(5, 3, 4) * torch.arange(1, 6).view(5, 1, 1)
    proof = verify(module, x, strategy="data=2")
    assert proof.same_result
    assert proof.sent_bytes == proof.predicted_bytes
    local = verify(module, x, strategy="data=2", batch_norm="local")
    assert local.buffers is not None
    assert local.buffers > 1e-3
    assert local.sent_bytes == local.predicted_bytes
