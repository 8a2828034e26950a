"""Positions cut between the layers of tensor: exact, counted, and refused where code needs all."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from equality import STEPS, assert_bytes, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import run_on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import layer_times
from workbench.errors import PlanError
from workbench.plan import Plan
from workbench.plan.stages import Call
from workbench.planning import plan
from workbench.verify import verify
from workbench.workload import Workload

VOCABULARY, CLASSES = 11, 5


class Attention(nn.Module):
    """As in common GPT code: sizes come from the input, heads from a view, a causal mask."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            y.view(n, length, self.heads, width // self.heads).transpose(1, 2) for y in (q, k, v)
        )
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mixed = scores.masked_fill(~causal, -1e9).softmax(-1) @ v
        return self.drop(self.out(mixed.transpose(1, 2).reshape(n, length, width)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, drop: float, after: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, drop)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.drop, self.after = nn.Dropout(drop), after

    def perceptron(self, x: Tensor) -> Tensor:
        return self.drop(self.down(F.gelu(self.up(x))))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.norms
        if self.after:
            x = one(x + self.attention(x))
            return two(x + self.perceptron(x))
        h = self.attention(one(x))
        h += x
        return h + self.perceptron(two(h))


class Reader(nn.Module):
    """Words and their places, blocks, and a class for the first word or for each."""

    def __init__(
        self, heads: int = 4, drop: float = 0.0, after: bool = False, per_word: bool = True
    ) -> None:
        super().__init__()
        width = 3 * heads
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(16, width)
        self.blocks = nn.Sequential(*(Block(width, heads, drop, after) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)
        self.per_word = per_word

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        h = self.norm(self.blocks(h))
        return self.head(h if self.per_word else h[:, 0])


class Encoder(nn.Module):
    def __init__(self, first: bool, drop: float = 0.0, batch_first: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 8)
        layer = nn.TransformerEncoderLayer(
            8, 4, 12, drop, norm_first=first, batch_first=batch_first
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(x)).mean(1))


class Words(nn.Module):
    """Cross-entropy per word: classes go to dim 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores.transpose(1, 2) if scores.ndim == 3 else scores


def workload(
    model: nn.Module, length: int = 7, per_word: bool = False, optimizer: str = "momentum"
) -> Workload:
    source = np.random.default_rng(0)
    shape = (20, length) if per_word else (20,)
    return Workload(
        model=Words(model),
        data=(source.integers(0, VOCABULARY, (20, length)), source.integers(0, CLASSES, shape)),
        test_data=(
            source.integers(0, VOCABULARY, (7, length)),
            source.integers(0, CLASSES, (7, *shape[1:])),
        ),
        loss=nn.CrossEntropyLoss(),
        optimizer={
            "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
            "adam": partial(torch.optim.Adam, lr=0.01),
        }[optimizer],
        batch_size=8,
        dtype="float64",
    )


def assert_equal(work: Workload, strategy: str, **options: object) -> Plan:
    got = run_on_threads(work, strategy, STEPS, sequence="split", **options)
    assert_same(got, run_on_threads(work, "serial", STEPS, **options))
    assert_bytes(got)
    return got.plan


def between(found: Plan) -> list[str]:
    """The layers of which a rank computes some positions."""
    (said,) = [note for note in found.notes if note.startswith("positions of the sequence")]
    return said.rpartition(" in ")[2].split(", ")


@settings(max_examples=4, deadline=None)
@given(
    heads=st.integers(2, 5),
    length=st.integers(1, 9),
    degree=st.integers(2, 4),
    drop=st.sampled_from([0.0, 0.2]),
    after=st.booleans(),
    per_word=st.booleans(),
    optimizer=st.sampled_from(["momentum", "adam"]),
)
def test_positions_that_are_cut_change_nothing(
    heads: int,
    length: int,
    degree: int,
    drop: float,
    after: bool,
    per_word: bool,
    optimizer: str,
) -> None:
    torch.manual_seed(0)
    model = Reader(max(heads, degree), drop, after, per_word)
    found = assert_equal(workload(model, length, per_word, optimizer), f"tensor={degree}")
    assert "model.blocks.0.norms.1" in between(found)
    assert "model.blocks.0.drop" in between(found)


@pytest.mark.parametrize("first", [False, True])
def test_encoder_layers_of_torch(first: bool) -> None:
    torch.manual_seed(0)
    found = assert_equal(workload(Encoder(first, 0.1)), "tensor=2")
    norms = [f"model.blocks.layers.{n}.norm2" for n in (0, 1)]
    assert set(norms) <= set(between(found))


@pytest.mark.parametrize("strategy", ["data=2,tensor=2", "sharded=2,tensor=2"])
def test_with_other_axes(strategy: str) -> None:
    torch.manual_seed(0)
    assert_equal(workload(Encoder(True)), strategy, accumulate=2)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize(
    "way",
    [{}, {"schedule": "zb-h1"}, {"schedule": "interleaved"}, {"recompute": "yes"}],
    ids=lambda way: next(iter(way.values()), "1f1b"),
)
def test_stages_give_each_other_the_positions_that_a_rank_has(
    way: dict[str, str], optimizer: str
) -> None:
    torch.manual_seed(0)
    work = workload(Encoder(True), optimizer=optimizer)
    got = run_on_threads(work, "pipeline=2,tensor=2", STEPS, sequence="split", accumulate=2, **way)
    assert_same(got, run_on_threads(work, "serial", STEPS, accumulate=2))
    assert_bytes(got)
    found = got.plan
    crossing = next(
        c for c in found.crossings if str(c.source) == "result of model.blocks.layers.0"
    )
    shapes = [found.passed_shape(crossing.source, crossing.size.of(2), rank) for rank in (0, 1)]
    assert shapes == [(2, 4, 8), (2, 3, 8)]


@pytest.mark.parametrize(
    ("strategy", "cut"),
    [
        ("pipeline=2,tensor=2", "model.blocks.1.norms.1"),
        ("pipeline=2,tensor=3", "model.norm"),
        ("pipeline=3,tensor=2", "model.blocks,model.blocks.1"),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_stages_that_begin_anywhere(strategy: str, cut: str, after: bool) -> None:
    torch.manual_seed(0)
    work = workload(Reader(4, 0.2, after), per_word=True)
    got = run_on_threads(work, strategy, STEPS, sequence="split", accumulate=2, split_at=cut)
    serial = run_on_threads(work, "serial", STEPS, accumulate=2)
    assert_same(got, serial)
    assert_bytes(got)


def test_stages_begin_in_one_place_although_times_differ_each_time_they_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where stages begin decides which layers may leave ranks some positions."""
    torch.manual_seed(0)
    perceptrons = (
        (nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8), nn.LayerNorm(8)) for _ in range(2)
    )
    net = nn.Sequential(nn.Embedding(VOCABULARY, 8), *chain(*perceptrons), nn.Linear(8, CLASSES))
    slow = iter([("model.4", "model.5"), ("model.1", "model.3")])
    taken = layer_times.layer_times

    def other_times(*given: Any) -> dict[Call, float]:
        two = next(slow)
        return {call: 1.0 if call.module in two else 1e-6 for call in taken(*given)}

    monkeypatch.setattr(layer_times, "layer_times", other_times)
    work = workload(net, per_word=True)
    options: dict[str, Any] = {"accumulate": 2, "balance": "measured"}
    got = run_on_threads(work, "pipeline=2,tensor=2", STEPS, sequence="split", **options)
    assert_same(got, run_on_threads(work, "serial", STEPS, accumulate=2))
    assert_bytes(got)


def test_a_proof_has_the_refusal() -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)
    proof = verify(net, x, strategy="tensor=2", sequence="split")
    assert "no layer of this model adds up" in str(proof.refusal)


def test_positions_that_spatial_cuts_are_not_cut_once_more() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 30, 3))
    data = (np.zeros((8, 2, 6, 5), np.float32), np.zeros(8, np.int64))
    made = Workload(model=net, data=data, loss=nn.CrossEntropyLoss(), batch_size=4)
    with pytest.raises(
        PlanError, match=r"that is not offered with spatial; use sequence=\"whole\""
    ):
        plan(made, "tensor=2,spatial=2", sequence="split")


def test_half_of_each_sum_travels_before_the_norm_and_half_after() -> None:
    work = workload(Encoder(True))
    whole, split = plan(work, "tensor=2"), plan(work, "tensor=2", sequence="split")
    moved = {c.name.removeprefix("model."): c.operation for c in split.collectives}
    assert moved["blocks.layers.0.self_attn: sum of outputs"] == "exchange"
    assert moved["blocks.layers.0.self_attn: gradients of outputs"] == "all_gather"
    assert moved["blocks.layers.0.norm2: whole output"] == "all_gather"
    assert split.bytes_per_step == pytest.approx(whole.bytes_per_step, rel=0.02)
    assert split.memory(0).activations_bytes < whole.memory(0).activations_bytes


def test_a_layer_that_is_whole_again_is_that_for_one_reader_and_cut_for_the_other() -> None:
    """After a norm that comes last, the sum that follows takes the rank's positions again."""
    found = plan(workload(Reader(after=True, per_word=False)), "tensor=2", sequence="split")
    assert {meeting.module for meeting in found.meetings} >= {"model.blocks.0", "model.blocks.1"}
    gathered = {p.layer.name for p in found.layers if p.choice == "gather output"}
    assert "model.blocks.0.norms.0" in gathered


class Pooled(nn.Module):
    """Reads, of all positions, sums that its own code has made."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.sums = nn.Identity() if through else None
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.words(x))
        h = h + self.down(F.gelu(self.up(h)))
        if self.sums is not None:
            h = self.sums(h)
        return self.head((h + h.cumsum(1))[:, -1])


def test_code_that_needs_all_positions_is_told_how_to_get_them() -> None:
    with pytest.raises(PlanError, match=r"cumsum.*nn\.Identity.*sequence=\"whole\""):
        plan(workload(Pooled(False)), "tensor=2", sequence="split")
    assert_equal(workload(Pooled(True)), "tensor=2")


class PositionsFirst(nn.Module):
    """Gives its blocks arrays with samples in dim 1."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(True, batch_first=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder.words(x).transpose(0, 1)
        return self.encoder.head(self.encoder.blocks(h).mean(0))


def test_positions_before_samples_are_refused() -> None:
    with pytest.raises(PlanError, match=r"samples, positions, features.*sequence=\"whole\""):
        plan(workload(PositionsFirst()), "tensor=2", sequence="split")


def test_models_without_positions_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = (np.zeros((8, 6), np.float32), np.zeros(8, np.int64))
    flat = Workload(model=model, data=data, loss=nn.CrossEntropyLoss(), batch_size=4)
    with pytest.raises(PlanError, match=r"no layer of this model adds up .*sequence=\"whole\""):
        plan(flat, "tensor=2", sequence="split")
    assert plan(flat, "data=2", sequence="split").ranks == 2  # says nothing of data
