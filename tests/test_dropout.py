"""Dropout of samples that are cut: the mask is that of the serial run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_threads import check_layer
from torch import Tensor, nn

from workbench.comm.connect import SoloComm
from workbench.layers.carrier import Seat
from workbench.layers.dropout import ShareDropout
from workbench.layers.groups import Groups
from workbench.layers.share import Share
from workbench.mesh import Mesh
from workbench.plan import Batch, Cut, CutLabel, LayerPlan, Plan
from workbench.traced import Flat, Layer
from workbench.verify import verify

KINDS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


class _Rank(SoloComm):
    """Stands for one of several ranks, for layers that ask nothing of the others."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def split(self, members: Sequence[int], *, name: str | None = None) -> _Rank:
        return self


def seat_of(plan: Plan, rank: int, *calls: LayerPlan, rows: int) -> Seat:
    return Seat("drop", 3, calls, plan, Groups(_Rank(rank), plan.mesh), Share(rows=rows))


@settings(deadline=None, max_examples=40)
@given(
    entries=st.sampled_from((None, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)),
    sides=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    ranks=st.sampled_from((1, 2, 3, "2x2")),
    data=st.sampled_from((1, 2)),
    p=st.sampled_from((0.0, 0.4, 1.0)),
    training=st.booleans(),
)
def test_a_rank_has_its_part_of_the_mask(
    entries: type[nn.Module] | None,
    sides: list[int],
    ranks: int | str,
    data: int,
    p: float,
    training: bool,
) -> None:
    ranks = 2 if len(sides) == 1 and isinstance(ranks, str) else ranks
    kind = entries or (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[len(sides) - 1]
    x = torch.randn(3, 2, *sides)
    assert check_layer(kind(p).train(training), x, spatial=ranks, data=data) < 1e-12


@pytest.mark.parametrize("label", ["out:conv", "dim2"])
def test_channels_and_flattened_dims_may_be_cut_too(label: str) -> None:
    axis = "channel" if label == "out:conv" else "spatial"
    flat = Flat((("out:conv", 5), ("dim2", 4), ("", 2)))
    plan = Plan("test", Batch(3, 3), (), Mesh(((axis, 3),)), cut_labels=(CutLabel(label, axis),))
    images, features = (3, 5, 4, 2), (3, 40)
    for kind in KINDS:
        alone = seat_of(Plan("test", Batch(3, 3), ()), 0, rows=3)
        whole = ShareDropout(kind(0.5), alone)(torch.ones(images))
        for rank in range(3):
            dim = 1 if label == "out:conv" else 2
            cut = LayerPlan(Layer("drop", "", images, images), input=(Cut(dim, axis),))
            start, stop = plan.share(images, cut.input, rank)[dim]
            x = torch.ones(images).narrow(dim, start, stop - start)
            mine = ShareDropout(kind(0.5), seat_of(plan, rank, cut, rows=3))(x)
            assert torch.equal(mine, whole.narrow(dim, start, stop - start))
        if kind is not nn.Dropout:
            continue
        whole = ShareDropout(kind(0.5), alone)(torch.ones(features)).view(images)
        for rank in range(3):
            cut = LayerPlan(Layer("drop", "", features, features), input=(Cut(1, axis, flat=flat),))
            start, stop = plan.share_of_label(label, images[dim], rank)
            x = torch.ones(images).narrow(dim, start, stop - start).flatten(1)
            mine = ShareDropout(kind(0.5), seat_of(plan, rank, cut, rows=3))(x)
            assert torch.equal(mine, whole.narrow(dim, start, stop - start).flatten(1))


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    x = torch.randn(400, 500, dtype=torch.float64)
    seat = seat_of(Plan("test", Batch(400, 400), ()), 0, rows=400)
    y = ShareDropout(nn.AlphaDropout(0.3), seat)(x)
    assert abs(float(y.mean())) < 0.02
    assert float(y.var()) == pytest.approx(1.0, abs=0.03)


def test_two_layers_and_two_calls_of_one_have_different_masks() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.first(x), self.second(x), self.first(x)], 1)

    x = torch.ones(3, 2, 6, 5)
    proof = verify(Chain(), x, strategy="data=2,spatial=2")
    assert proof.same_result, proof

    seat = seat_of(Plan("test", Batch(3, 3), ()), 0, rows=3)
    drop = ShareDropout(nn.Dropout(0.5), seat)
    once, again = drop(x), drop(x)
    assert not torch.equal(once, again)
    assert not torch.equal(once[0], once[1])


def test_p_and_in_place_are_read_at_each_call() -> None:
    layer = nn.Dropout(0.0)
    drop = ShareDropout(layer, seat_of(Plan("test", Batch(3, 3), ()), 0, rows=3))
    x = torch.ones(3, 8)
    assert drop(x) is x
    layer.p, layer.inplace = 1.0, True
    assert drop(x) is x
    assert not x.any()
