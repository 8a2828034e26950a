"""An axis that splits nothing is refused, and what is named instead works; the rest is split."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from operator_cases import prove
from test_tensor import choices
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.plan import Plan
from workbench.planning import plan
from workbench.ui.language import speaking, translate
from workbench.workload import Workload


def planned(model: nn.Module, strategy: str, shape: tuple[int, ...], batch: int = 12) -> Plan:
    x = np.zeros((batch, *shape), np.float32)
    y = np.zeros(tuple(model(torch.from_numpy(x)).shape), np.float32)
    return plan(Workload(model=model, data=(x, y), loss=nn.MSELoss(), batch_size=batch), strategy)


class Attention(nn.Module):
    """Attention of as many heads as asked, of three features each."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3 * heads, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return made


def deep(*widths: int) -> nn.Module:
    """Linear layers with a softmax between, which needs all features."""
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*(each for layer in layers for each in (layer, nn.Softmax(-1))))


@pytest.mark.parametrize(
    ("model", "strategy", "shape", "nearest"),
    [
        (nn.Linear(4, 3), "tensor=4", (4,), "tensor=3"),
        (nn.Linear(4, 1), "tensor=6", (4,), "data=6"),
        (deep(8, 2, 2), "tensor=8", (8,), "tensor=2"),
        (deep(8, 2, 2), "data=3,tensor=4", (8,), "data=3,tensor=2"),
        (deep(8, 1, 1), "data=2,tensor=4", (8,), "data=8"),
        (deep(8, 1, 1), "data=2,sharded=2,tensor=4", (8,), "data=6,sharded=2"),
        (deep(8, 1, 1), "pipeline=2,tensor=2", (8,), "data=2,pipeline=2"),
        (nn.Conv2d(4, 3, 1), "tensor=4", (4, 2, 2), "tensor=3"),
        (nn.Conv2d(4, 3, 1), "channel=4", (4, 2, 2), "channel=3"),
        (nn.Conv2d(4, 1, 1), "channel=4", (4, 2, 2), "data=4"),
        (nn.Conv2d(4, 3, 1), "data=2,tensor=2,channel=2", (4, 2, 2), "data=2,channel=3"),
        (nn.Linear(4, 3), "data=2,channel=4", (4,), "data=8"),
        (nn.Linear(4, 3), "data=4,channel=2", (4,), "data=8, or data=4,tensor=2 for its linear"),
        (Attention(3), "data=2,tensor=4", (5, 9), "data=2,tensor=3"),
        (nn.Linear(4, 3), "data=2,spatial=3", (4,), "data=6, or spatial_dims=1"),
        (nn.Conv2d(4, 3, 1), "data=2,sharded=7", (4, 2, 2), "data=2,sharded=6"),
        (nn.Conv2d(4, 3, 1), "data=3,sharded=5", (4, 2, 2), "data=3,sharded=4"),
        (nn.Conv2d(4, 3, 1), "data=13,tensor=2", (4, 2, 2), "data=12,tensor=2"),
    ],
)  # fmt: skip
def test_an_axis_that_splits_nothing_is_refused_and_the_nearest_works(
    model: nn.Module, strategy: str, shape: tuple[int, ...], nearest: str
) -> None:
    with pytest.raises(PlanError) as refused:
        planned(model, strategy, shape)
    said = str(refused.value)
    found = re.search(r"(?:nearest is|[Uu]se) (.*)\.?$", said)
    assert found is not None, said
    assert re.match(rf"{re.escape(nearest)}[., ]", found[1]), said
    named = nearest.split()[0].rstrip(",")
    assert planned(model, named, shape).strategy == named
    with speaking("zh"):
        assert not re.search("[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}", translate(said))


def test_what_cannot_be_split_is_said_to_stay_whole() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    notes = planned(net, "tensor=4", (8,)).notes
    assert "split in columns (outputs): 0" in notes
    assert "whole on every rank, as it cannot be split: 2" in notes


def test_attention_with_fewer_heads_than_ranks_stays_whole_and_all_else_is_split() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 256, dropout=0.0, batch_first=True)
    found = planned(net, "tensor=4", (5, 8))
    assert choices(found) == {"linear1": "filters", "linear2": "channels"}
    assert "whole on every rank, as it cannot be split: self_attn" in found.notes
    (cost,) = [note for note in found.notes if note.startswith("attention of 2 heads cannot be")]
    # For each position 4 x 8 x 8 products and 80 more, of 2 x 8 x 256 beside.
    assert re.search(r"all of self_attn \(8% of the work.*\) and keeps its 1\.1 KiB", cost), cost
    with speaking("zh"):
        assert translate(cost).startswith("2 个头的注意力不能切成 4 份")
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    for strategy in ("tensor=4", "tensor=3", "data=2,tensor=3"):
        assert prove(net.double(), x, strategy=strategy).refusal is None


def test_what_cuts_the_batch_is_named_where_an_output_has_no_rows() -> None:
    class Sum(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum(0)

    says = r"^data=2,sharded=2 cuts the batch, but for 4 samples the model gives an output of"
    x = np.zeros((4, 3), np.float32)
    work = Workload(
        model=Sum(3, 2), data=(x, x[:, :2]), loss=lambda made, _: made.sum(), batch_size=4
    )
    with pytest.raises(PlanError, match=says):
        plan(work, "data=2,sharded=2")
    with pytest.raises(PlanError, match=r"^sharded=2 cuts the batch"):
        plan(work, "sharded=2")


class Words(nn.Module):
    """Attention over the positions of words, as in GPT-2 and BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(7, 6), nn.Sequential(Attention(2), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.words(x)).transpose(1, 2)


def test_advice_that_would_be_refused_is_not_given() -> None:
    x = np.zeros((4, 6), np.int64)
    work = Workload(model=Words(), data=(x, x % 3), loss=nn.CrossEntropyLoss(), batch_size=4)
    with pytest.raises(PlanError, match=r"of shape \(4, 6\) has none; use data=2\.$"):
        plan(work, "spatial=2")
    for options in ({}, {"fallback": "gather"}):
        try:
            plan(work, "spatial=2", spatial_dims=1, **options)
        except PlanError as error:
            said = str(error)
            assert ("fallback=" in said) == ("fallback" not in options), said
        else:
            assert options


def test_positions_of_words_that_can_be_cut_are_advised() -> None:
    class Apart(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).transpose(1, 2)

    net = Apart(nn.Embedding(7, 8), nn.Linear(8, 3))
    x = np.zeros((4, 6), np.int64)
    work = Workload(model=net, data=(x, x % 3), loss=nn.CrossEntropyLoss(), batch_size=4)
    with pytest.raises(PlanError, match=r"use data=2, or spatial_dims=1, which cuts what dim 1"):
        plan(work, "spatial=2")
    assert plan(work, "spatial=2", spatial_dims=1).ranks == 2
