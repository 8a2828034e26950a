"""Attention that is written with plain layers, split by heads; features in pieces."""

from __future__ import annotations

import pytest
import torch
from operator_cases import prove
from test_tensor import choices, moved, planned
from torch import Tensor, nn
from torch.nn import functional as F


class Heads(nn.Module):
    """Attention as it is commonly written, with queries, keys and values in layers of their own."""

    def __init__(self, way: str, width: int = 12, heads: int = 3, key_heads: int = 3) -> None:
        super().__init__()
        self.way, self.heads, self.key_heads, self.each = way, heads, key_heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, key_heads * self.each, bias=False)
        self.value = nn.Linear(width, key_heads * self.each)
        self.out = nn.Linear(width, width)

    def _apart(self, x: Tensor, heads: int) -> Tensor:
        samples, length, width = x.shape
        if self.way == "unflatten":
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)
        if self.way == "minus one":
            return x.view(samples, length, -1, self.each).transpose(1, 2)
        if self.way == "by width":
            return x.view(samples, length, heads, width // heads).permute(0, 2, 1, 3)
        return x.reshape(samples, length, heads, self.each).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        query = self._apart(self.query(x), self.heads)
        key, value = (self._apart(p(x), self.key_heads) for p in (self.key, self.value))
        repeats = self.heads // self.key_heads
        if repeats > 1 and self.way == "minus one":  # as in the transformers package
            shape = samples, -1, length, self.each
            key, value = (
                t[:, :, None].expand(-1, -1, repeats, -1, -1).reshape(shape) for t in (key, value)
            )
        elif repeats > 1 and self.way != "unflatten":
            key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
        if self.way == "by hand":
            scores = query @ key.transpose(-2, -1) / self.each**0.5
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            mixed = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value
        else:
            grouped = query.shape[1] != key.shape[1]
            mixed = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=grouped
            )
        mixed = mixed.transpose(1, 2)
        if self.way == "by width":
            return self.out(mixed.contiguous().view(samples, length, width))
        return self.out(mixed.flatten(-2))


@pytest.mark.parametrize("way", ["unflatten", "minus one", "heads and each", "by hand"])
def test_attention_of_plain_layers_is_split_by_heads(way: str) -> None:
    found = planned(Heads(way), "tensor=2", 5, 12)
    assert choices(found) == {
        "query": "filters",
        "key": "filters",
        "value": "filters",
        "out": "channels",
    }
    kept = [found.owned(a, rank).shape for rank in (0, 1) for a in found.arrays[:1]]
    assert kept == [(8, 12), (4, 12)]  # two heads of four features, and one
    assert {name for name in moved(found) if not name.startswith("gradients,")} == {
        "out: sum of outputs",
        "out: gradients of outputs",
    }


@pytest.mark.parametrize("way", ["unflatten", "minus one", "heads and each", "by hand"])
def test_queries_in_groups_are_split_with_the_keys_that_they_have_in_common(way: str) -> None:
    found = planned(Heads(way, 12, 6, 3), "tensor=2", 5, 12)
    assert choices(found) == {
        "query": "filters",
        "key": "filters",
        "value": "filters",
        "out": "channels",
    }
    kept = [[found.owned(a, rank).shape for a in found.arrays] for rank in (0, 1)]
    # Two groups of two heads of two features, with a head of keys each, and one.
    assert [shapes[0] for shapes in kept] == [(8, 12), (4, 12)]
    assert [shapes[2] for shapes in kept] == [(4, 12), (2, 12)]
    assert {name for name in moved(found) if not name.startswith("gradients,")} == {
        "out: sum of outputs",
        "out: gradients of outputs",
    }


@pytest.mark.parametrize("way", ["unflatten", "minus one", "heads and each", "by hand", "by width"])
@pytest.mark.parametrize(("heads", "key_heads"), [(3, 3), (4, 4), (4, 2), (6, 3), (6, 1)])
@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "data=2,tensor=2"])
def test_attention_of_plain_layers_equals_serial(
    way: str, heads: int, key_heads: int, strategy: str
) -> None:
    torch.manual_seed(0)
    net = Heads(way, 12, heads, key_heads).double()
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    assert prove(net, x, strategy=strategy).refusal is None


def test_heads_from_the_width_of_the_whole_array_are_split_too() -> None:
    found = planned(Heads("by width"), "tensor=2", 5, 12)
    assert choices(found)["query"] == "filters"
    assert "query: whole output" not in moved(found)


def test_fewer_heads_than_ranks_are_gathered() -> None:
    found = planned(Heads("unflatten", 12, 3), "tensor=4", 5, 12)
    assert moved(found)["query: whole output"] == "all_gather"


def test_features_flattened_out_of_channels_stay_cut() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 5 * 4, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x)).flatten(1))

    found = planned(Net(), "tensor=4", 3, 5, 4)
    assert choices(found) == {"conv": "filters", "head": "channels"}
    assert [found.owned(found.arrays[2], rank).shape[1] for rank in range(4)] == [40, 40, 20, 20]
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert prove(Net().double(), x, strategy="tensor=4").refusal is None
