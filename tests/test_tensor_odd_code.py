"""Shares of parameters under code that does odd things with its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import prove
from test_tensor import Block, planned
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import PlanError


class Reads(nn.Module):
    """Reads parameters of a layer where that is not called."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.how = how
        if how == "spectral":
            nn.utils.spectral_norm(self.a)
        if how == "hook":
            self.a.register_forward_pre_hook(self.note)

    def note(self, layer: nn.Module, _given: Any) -> None:
        self.scale = layer.weight.norm()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.how == "hook":
            h = h * self.scale
        if self.how == "norm":
            h = h * self.a.weight.norm()
        if self.how == "size":
            h = h / self.a.weight.shape[0]
        if self.how == "data":
            h = h * self.a.weight.data.sum()
        if self.how == "bias":
            return self.b(h) + self.a.bias
        if self.how == "product":
            return self.b(h) + F.linear(x, self.a.weight)
        if self.how == "functional":
            weight = {"weight": self.a.weight * 2}
            h = h + torch.func.functional_call(self.a, weight, (x,))
        return self.b(h)


READS = ["hook", "norm", "size", "data", "bias", "product", "functional", "spectral"]


@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "sharded=2", "sharded=2,tensor=2"])
@pytest.mark.parametrize("how", READS)
def test_parameters_that_other_code_reads_stay_whole(how: str, strategy: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert prove(Reads(how).double(), x, strategy=strategy).refusal is None


def test_a_model_of_which_other_code_reads_all_is_refused_with_the_parameter() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x)) @ self.a.weight

    with pytest.raises(PlanError, match=r"code reads 'a\.weight' where its layer is not called"):
        planned(Both(), "tensor=2", 6)


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_a_proof_counts_what_is_sent_without_an_update(stage: str) -> None:
    x = torch.randn(4, 8, dtype=torch.float64)
    assert prove(Block(8, 6).double(), x, strategy="sharded=2", stage=stage).refusal is None


class Calls(nn.Module):
    """Calls layers in ways in which they are not called in a chain."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        if how == "parametrized":
            nn.utils.parametrizations.weight_norm(self.b)
            nn.utils.parametrize.register_parametrization(self.b, "bias", nn.Softplus())
        if how == "two holders":
            self.held = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "dims":
            rows, last = (F.softmax(self.a(part), -1) for part in (x, x[:, 0]))
            return self.b(rows) + self.b(last)[:, None]
        if self.how == "flattened":
            return self.b(self.a(x.flatten(0, 1)).relu()).unflatten(0, (len(x), -1))
        if self.how == "transformed":
            return self.b(torch.fft.fft(self.a(x)).real)
        if self.how == "in place":
            return self.b(self.a(x).relu_())
        if self.how == "two holders":
            return self.b(self.a(x) + F.linear(x, self.held))
        return self.b(self.a(x))


CALLS = ["dims", "flattened", "transformed", "in place", "two holders", "parametrized"]


@pytest.mark.parametrize(
    "strategy", ["tensor=2", "tensor=3", "data=2,tensor=2", "sharded=2", "sharded=2,tensor=2"]
)
@pytest.mark.parametrize("how", CALLS)
def test_layers_that_are_called_otherwise_equal_serial(how: str, strategy: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    assert prove(Calls(how).double(), x, strategy=strategy).refusal is None


@pytest.mark.parametrize("strategy", ["tensor=2", "data=2", "sharded=2", "data=2,tensor=2"])
def test_sparse_gradients_equal_serial(strategy: str) -> None:
    net = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Linear(6, 4))
    ids = torch.arange(12).view(4, 3) % 9
    assert prove(net.double(), ids, strategy=strategy).refusal is None


class Channels(nn.Module):
    """Calls a convolution in groups with channels that are cut, and with all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.each = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.b, self.tied = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 1)
        self.tied.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.b(self.each(self.a(x).relu()) + self.each(x)))


@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "channel=2", "data=2,channel=3"])
def test_convolutions_called_twice_and_tied_equal_serial(strategy: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    assert prove(Channels().double(), x, strategy=strategy).refusal is None


@pytest.mark.parametrize("average", [True, False])
def test_attention_stays_whole_where_the_loss_needs_its_weights(average: bool) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.a(x)
            return self.attention(h, h, h, average_attn_weights=average)

    x = torch.randn(4, 5, 6, dtype=torch.float64)
    assert prove(Looks().double(), x, strategy="tensor=2").refusal is None


def test_a_layer_called_once_without_samples_stays_whole_in_all_calls() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.a(torch.ones(6).to(x)))

    x = torch.randn(4, 6, dtype=torch.float64)
    assert prove(One().double(), x, strategy="tensor=2").refusal is None


class Frozen(nn.Module):
    """A head on an encoder that is not trained, which torch computes at a stroke."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True).eval()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.encoder(x)
        return self.head(h)


class Projected(nn.Module):
    """A layer has the weight of the projection inside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.attention.out_proj.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.attention(h, h, h)[0])


@pytest.mark.parametrize("strategy", ["tensor=2", "sharded=2", "sharded=2,tensor=2"])
@pytest.mark.parametrize("make", [Frozen, Projected])
def test_attention_whose_parameters_others_take_equals_serial(make: Any, strategy: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    assert prove(make().double(), x, strategy=strategy).refusal is None


@pytest.mark.parametrize("strategy", ["tensor=2", "sharded=2"])
def test_a_parametrized_table_equals_serial(strategy: str) -> None:
    table = nn.utils.parametrizations.weight_norm(nn.Embedding(9, 6))
    ids = torch.arange(12).view(4, 3) % 9
    net = nn.Sequential(table, nn.Linear(6, 4))
    assert prove(net.double(), ids, strategy=strategy).refusal is None


class Penalty(nn.Module):
    """Reads weights of its layers beside calling them, which takes whole ones."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        self.three = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.two(self.norm(torch.relu(self.one(x)))))
        tied = F.linear(hidden, self.one.weight[:4])
        return self.three(tied) + self.two.weight.square().mean() + self.norm.weight.sum()


@pytest.mark.parametrize(
    "strategy", ["tensor=2", "sharded=2", "pipeline=2", "pipeline=3", "data=2,tensor=2"]
)
def test_weights_that_other_code_reads_stay_whole(strategy: str) -> None:
    found = planned(Penalty(), strategy, 4)
    read = ("one.weight", "two.weight", "norm.weight")
    assert all(found.parameter_cuts(name) == () for name in read)
    x = torch.randn(4, 4, dtype=torch.float64)
    assert prove(Penalty().double(), x, strategy=strategy).refusal is None
