"""One layer for queries, keys and values, split by heads; sizes written as those of the whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from equality import assert_bytes
from operator_cases import prove
from rank_threads import run_on_threads
from test_tensor import choices, moved, planned
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.checkpoint.pieces import held, whole_shape
from workbench.layers.channels import own_part
from workbench.plan import assemble
from workbench.resuming import Start
from workbench.workload import Workload


class FusedAttention(nn.Module):
    """Attention as in nanoGPT, GPT-2 and timm, where one layer makes queries, keys and values."""

    def __init__(self, way: str, width: int = 12, heads: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.way, self.width, self.heads = way, width, heads
        self.scale = (width // heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def _heads(self, x: Tensor) -> Tensor:
        samples, length = x.shape[:2]
        if self.way == "chunk":  # by the width of what is given, which on a share is another
            return x.view(samples, length, -1, self.width // self.heads).transpose(1, 2)
        return x.view(samples, length, self.heads, self.width // self.heads).transpose(1, 2)

    def _three(self, x: Tensor) -> tuple[Tensor, ...]:
        samples, length, width = x.shape
        made = self.qkv(x)
        if self.way == "timm":
            three = made.reshape(samples, length, 3, self.heads, width // self.heads)
            return three.permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "indexed":
            three = made.view(samples, length, 3, self.heads, width // self.heads)
            return tuple(three[:, :, i].transpose(1, 2) for i in range(3))
        if self.way == "slices":
            parts = (made[..., :width], made[..., width : 2 * width], made[..., -width:])
        elif self.way == "chunk":
            parts = made.chunk(3, dim=-1)
        elif self.way == "sections":
            parts = torch.split(made, [width, width, width], -1)
        else:
            parts = made.split(self.width, dim=2)
        return tuple(map(self._heads, parts))

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        query, key, value = self._three(self.norm(x))
        if self.way == "timm":
            mixed = ((query * self.scale) @ key.transpose(-2, -1)).softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.proj(mixed.transpose(1, 2).contiguous().view(samples, length, width))


WAYS = ("nanogpt", "chunk", "sections", "timm", "indexed", "slices")


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_for_queries_keys_and_values_is_split_by_heads(way: str) -> None:
    found = planned(FusedAttention(way), "tensor=2", 5, 12)
    assert choices(found) == {"qkv": "filters", "proj": "channels"}
    weight, bias = (a for a in found.arrays if a.name.startswith("qkv"))
    assert "split in columns (outputs), each of 3 parts by itself: qkv" in found.notes
    # Three times two heads of four features, and three times one.
    assert [found.owned(weight, rank).shape for rank in (0, 1)] == [(24, 12), (12, 12)]
    assert [found.owned(bias, rank).shape for rank in (0, 1)] == [(24,), (12,)]
    assert {name for name in moved(found) if not name.startswith("gradients,")} == {
        "proj: sum of outputs",
        "proj: gradients of outputs",
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("heads", "bias"), [(2, True), (3, False), (5, True)])
@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "data=2,tensor=2"])
def test_attention_with_one_layer_for_three_equals_serial(
    way: str, heads: int, bias: bool, strategy: str
) -> None:
    torch.manual_seed(0)
    net = FusedAttention(way, 4 * heads, heads, bias).double()
    x = torch.randn(4, 5, 4 * heads, dtype=torch.float64)
    assert prove(net, x, strategy=strategy).refusal is None


def test_fewer_heads_than_ranks_are_gathered_after_the_layer_for_three() -> None:
    found = planned(FusedAttention("nanogpt", 12, 2), "tensor=3", 5, 12)
    assert moved(found)["qkv: whole output"] == "all_gather"


class Grouped(nn.Module):
    """One layer for queries and the fewer keys and values that groups of them have in common."""

    def __init__(self, way: str, heads: int, key_heads: int, each: int = 2) -> None:
        super().__init__()
        self.way, self.each, self.repeats = way, each, heads // key_heads
        self.sizes = [heads * each, key_heads * each, key_heads * each]
        self.qkv = nn.Linear(7, sum(self.sizes))
        self.proj = nn.Linear(heads * each, 7)

    def forward(self, x: Tensor) -> Tensor:
        made, (first, second, _) = self.qkv(x), self.sizes
        parts: Any = made.split(self.sizes, -1)
        if self.way == "slices":
            parts = made[..., :first], made[..., first : first + second], made[..., -second:]
        elif self.way == "narrow":
            starts = 0, first, first + second
            parts = [made.narrow(-1, *each) for each in zip(starts, self.sizes, strict=True)]
        query, key, value = (t.unflatten(-1, (-1, self.each)).transpose(1, 2) for t in parts)
        key, value = (t.repeat_interleave(self.repeats, 1) for t in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


GROUPED = ("split", "slices", "narrow")


@pytest.mark.parametrize("way", GROUPED)
def test_one_layer_for_queries_and_fewer_keys_is_split_by_groups(way: str) -> None:
    found = planned(Grouped(way, 6, 3), "tensor=2", 5, 7)
    assert choices(found) == {"qkv": "filters", "proj": "channels"}
    assert "split in columns (outputs), each of 3 parts by itself: qkv" in found.notes
    # Two groups: four heads of two features, two of keys and two of values; and one group.
    weight = found.arrays[0]
    assert [found.owned(weight, rank).shape for rank in (0, 1)] == [(16, 7), (8, 7)]
    assert {name for name in moved(found) if not name.startswith("gradients,")} == {
        "proj: sum of outputs",
        "proj: gradients of outputs",
    }


@pytest.mark.parametrize("way", GROUPED)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (6, 3), (12, 3), (6, 1), (3, 3)])
@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "data=2,tensor=2"])
def test_attention_with_one_layer_for_groups_equals_serial(
    way: str, heads: int, key_heads: int, strategy: str
) -> None:
    torch.manual_seed(0)
    net = Grouped(way, heads, key_heads).double()
    x = torch.randn(4, 5, 7, dtype=torch.float64)
    assert prove(net, x, strategy=strategy).refusal is None


def test_shares_of_a_layer_for_groups_are_put_together_in_their_places() -> None:
    found = planned(Grouped("split", 6, 3), "tensor=2", 5, 7)
    whole = np.arange(24 * 7).reshape(24, 7)
    rows = [[*range(8), *range(12, 16), *range(18, 22)], [*range(8, 12), 16, 17, 22, 23]]
    (cut,) = found.parameter_cuts("qkv.weight")
    parts = {rank: whole[rows[rank]] for rank in (0, 1)}
    assert np.array_equal(assemble(parts, (cut,), found.mesh, np.concatenate), whole)
    arrays = {"parameter:qkv.weight": da.from_array(whole, chunks=(9, 7))}
    for rank in (0, 1):
        (share,) = Start(arrays, 0).shares(found, rank).values()
        assert np.array_equal(share.compute(scheduler="sync"), parts[rank])
        piece = held(found, "parameter:qkv.weight", whole.shape, rank)
        assert [place for run in piece[0] for place in range(*run)] == rows[rank]
        assert np.array_equal(own_part(torch.from_numpy(whole), cut, found, rank), parts[rank])
    shapes = {rank: part.shape for rank, part in parts.items()}
    assert whole_shape(shapes, (cut,), found.mesh) == (24, 7)


class Gated(nn.Module):
    """A perceptron whose first layer makes features and their gates at once."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.up(x).chunk(2, dim=-1)
        return x + self.down(features * F.silu(gate))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_gates_beside_their_features_are_split_with_them(degree: int) -> None:
    net = Gated(5, 7)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    proof = prove(net.double(), x, strategy=f"tensor={degree}")
    assert proof.refusal is None
    if degree > 1:
        found = planned(Gated(5, 7), f"tensor={degree}", 4, 5)
        assert choices(found) == {"up": "filters", "down": "channels"}


class Uneven(nn.Module):
    """Takes parts of several sizes from one layer: nobody can cut them alike."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        some, rest = self.up(x).split([6, 3], -1)
        return self.down(some) * rest.sum(-1, keepdim=True)


class Normed(nn.Module):
    """Normalizes queries over all of their features, as some vision models do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.norm = nn.Linear(6, 18), nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.proj(self.norm(query) * key + value)


@pytest.mark.parametrize("net", [Uneven(), Normed()], ids=["uneven", "normed"])
def test_parts_that_other_code_needs_whole_are_gathered(net: nn.Module) -> None:
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    assert prove(net.double(), x, strategy="tensor=2").refusal is None
    found = planned(net.float(), "tensor=2", 3, 6)
    first = found.layers[0].layer.name
    assert moved(found)[f"{first}: whole output"] == "all_gather"


def workload(way: str, optimizer: str) -> Workload:
    torch.manual_seed(1)
    if way == "groups":
        blocks = [nn.Linear(12, 7), Grouped("slices", 6, 3), nn.ReLU(), Grouped("split", 4, 2)]
        blocks.append(nn.Linear(7, 12))
    else:
        blocks = [FusedAttention(way) for _ in range(2)]
    net = nn.Sequential(nn.Linear(5, 12), *blocks)
    source = np.random.default_rng(0)
    make = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}[optimizer]
    return Workload(
        model=net,
        data=(source.normal(size=(14, 4, 5)), source.normal(size=(14, 4, 12))),
        test_data=(source.normal(size=(3, 4, 5)), source.normal(size=(3, 4, 12))),
        loss=nn.MSELoss(),
        optimizer=partial(make, lr=0.01),
        batch_size=6,
        dtype="float64",
    )


@pytest.mark.parametrize(
    ("way", "optimizer", "strategy"),
    [
        ("nanogpt", "adam", "tensor=2"),
        ("timm", "sgd", "tensor=3"),
        ("timm", "adam", "data=2,tensor=2"),
        ("slices", "sgd", "sharded=2,tensor=2"),
        ("nanogpt", "sgd", "pipeline=2,tensor=2"),
        ("groups", "adam", "tensor=2"),
        ("groups", "sgd", "sharded=2,tensor=2"),
        ("groups", "adam", "pipeline=2,tensor=2"),
    ],
)
def test_training_with_one_layer_for_three_equals_serial(
    way: str, optimizer: str, strategy: str
) -> None:
    one = run_on_threads(workload(way, optimizer), "serial", 5)
    many = run_on_threads(workload(way, optimizer), strategy, 5)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-10)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    assert_bytes(many)


def test_shares_of_a_layer_for_three_are_put_together_in_their_places() -> None:
    found = planned(FusedAttention("nanogpt"), "tensor=2", 5, 12)
    whole = np.arange(36 * 12).reshape(36, 12)
    thirds = whole.reshape(3, 12, 12)
    parts = {0: thirds[:, :8].reshape(24, 12), 1: thirds[:, 8:].reshape(12, 12)}
    cuts = found.parameter_cuts("qkv.weight")
    assert np.array_equal(assemble(parts, cuts, found.mesh, np.concatenate), whole)
    lazy = {rank: da.from_array(part, chunks=part.shape) for rank, part in parts.items()}
    together = assemble(lazy, cuts, found.mesh, da.concatenate)
    assert np.array_equal(together.compute(scheduler="sync"), whole)


def test_another_run_goes_on_from_such_shares() -> None:
    """Weights and the state of the optimizer, cut anew from arrays in two chunks."""
    found = planned(FusedAttention("timm"), "tensor=3", 5, 12)
    whole = np.arange(36 * 12).reshape(36, 12)
    arrays = {
        f"{kind}:qkv.weight": da.from_array(whole, chunks=(18, 12))
        for kind in ("parameter", "optimizer:momentum_buffer")
    }
    for rank in range(3):
        for share in Start(arrays, 0).shares(found, rank).values():
            wanted = whole.reshape(3, 3, 4, 12)[:, rank].reshape(12, 12)
            assert np.array_equal(share.compute(scheduler="sync"), wanted)
