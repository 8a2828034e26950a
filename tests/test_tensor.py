"""Tensor parallelism: what is split and how, what travels, and that it is exact."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from equality import assert_bytes, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import prove
from rank_threads import run_on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import PlanError
from workbench.models import ByteGPT, DigitsMLP
from workbench.order import Order
from workbench.plan import Plan
from workbench.planning import plan
from workbench.workload import Workload


def planned(model: nn.Module, strategy: str, *shape: int, integers: int = 0) -> Plan:
    x = np.zeros((4, *shape), np.float32)
    if integers:
        x = np.zeros((4, *shape), np.int64)
    outputs = model.double()(torch.from_numpy(x) if integers else torch.from_numpy(x).double())
    y = np.zeros(outputs.shape, np.float32)
    work = Workload(model=model.float(), data=(x, y), loss=nn.MSELoss(), batch_size=4)
    return plan(work, strategy)


def choices(found: Plan) -> dict[str, str]:
    return {p.layer.name: p.choice for p in found.layers if p.choice}


def moved(found: Plan) -> dict[str, str]:
    """What is sent for layers, by name."""
    return {c.name: c.operation for c in found.collectives if c.phase in ("forward", "backward")}


class Block(nn.Module):
    """A residual block whose perceptron is a pair."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def test_one_sum_serves_the_two_layers_of_a_perceptron() -> None:
    found = planned(Block(8, 32), "tensor=2", 8)
    assert choices(found) == {"up": "filters", "down": "channels"}
    assert [cut.dim for cut in found.parameter_cuts("up.weight")] == [0]
    assert [cut.dim for cut in found.parameter_cuts("up.bias")] == [0]
    assert [cut.dim for cut in found.parameter_cuts("down.weight")] == [1]
    assert found.parameter_cuts("down.bias") == ()
    layers = {
        name: kind for name, kind in moved(found).items() if not name.startswith("gradients,")
    }
    assert layers == {
        "down: sum of outputs": "all_reduce",
        "down: gradients of outputs": "all_reduce",
    }


def test_features_that_other_code_needs_whole_are_gathered_and_the_plan_says_so() -> None:
    class Softmaxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.normalize(self.a(x), dim=-1))

    found = planned(Softmaxed(), "tensor=2", 4)
    assert moved(found)["a: whole output"] == "all_gather"
    assert "a: whole output" in str(found)
    assert (
        prove(Softmaxed().double(), torch.randn(4, 4).double(), strategy="tensor=2").refusal is None
    )


class Scaled(nn.Module):
    """Divides by a number of features that is another on a share."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h / h.shape[-1] ** 0.5)


def test_a_number_computed_from_features_keeps_them_whole() -> None:
    assert "a: whole output" in moved(planned(Scaled(), "tensor=2", 6))
    x = torch.randn(4, 6, dtype=torch.float64)
    assert prove(Scaled().double(), x, strategy="tensor=2").refusal is None


class Tied(nn.Module):
    """One table for the words that go in and those that come out."""

    def __init__(self, words: int = 11, width: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=3)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.words(x))))


def test_tied_weights_are_split_in_the_same_way_by_vocabulary() -> None:
    found = planned(Tied(), "tensor=2", 5, integers=1)
    assert (choices(found)["words"], choices(found)["head"]) == ("channels", "filters")
    assert [cut.dim for cut in found.parameter_cuts("words.weight")] == [0]
    assert found.parameter_cuts("head.weight") == ()  # it has no name of its own


def test_an_embedding_alone_is_split_by_features() -> None:
    net = nn.Sequential(nn.Embedding(9, 6), nn.ReLU(), nn.Linear(6, 4))
    found = planned(net, "tensor=3", 5, integers=1)
    assert choices(found)["0"] == "filters"
    assert [cut.dim for cut in found.parameter_cuts("0.weight")] == [1]


def test_attention_is_split_by_heads_that_need_not_divide() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True)
    found = planned(layer, "tensor=2", 5, 12)
    assert choices(found) == {"self_attn": "heads", "linear1": "filters", "linear2": "channels"}
    shapes = [
        {a.name: found.owned(a, rank).shape for a in found.arrays if "self_attn" in a.name}
        for rank in range(2)
    ]
    assert shapes[0]["self_attn.in_proj_weight"] == (3 * 8, 12)
    assert shapes[1]["self_attn.in_proj_weight"] == (3 * 4, 12)
    assert shapes[1]["self_attn.out_proj.weight"] == (12, 4)
    assert shapes[1]["self_attn.out_proj.bias"] == (12,)


class Attention(nn.Module):
    """``nn.MultiheadAttention`` as it is called in all its ways."""

    def __init__(self, call: dict[str, Any], mask: str, **made: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, **made)
        self.call, self.mask = call, mask

    def forward(self, x: Tensor) -> Tensor:
        attention = self.attention
        first = attention.batch_first
        samples, length = x.shape[:2] if first else (x.shape[1], x.shape[0])
        more: dict[str, Any] = dict(self.call)
        if self.mask in ("causal", "both"):
            more["attn_mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.mask == "per head":
            more["attn_mask"] = (
                torch.linspace(0, 1, samples * 4 * length**2)
                .view(samples * 4, length, length)
                .to(x)
            )
        if self.mask in ("padding", "both"):
            more["key_padding_mask"] = torch.zeros(samples, length, dtype=torch.bool)
            more["key_padding_mask"][:, -1] = True
        key = x[..., : attention.kdim]
        return attention(x, key, x[..., : attention.vdim], **more)[0]


@given(
    call=st.sampled_from([{}, {"need_weights": False}, {"average_attn_weights": False}]),
    mask=st.sampled_from(["", "causal", "padding", "both", "per head"]),
    made=st.sampled_from([{}, {"bias": False}, {"kdim": 8, "vdim": 6}, {"dropout": 0.3}]),
    batch_first=st.booleans(),
    degree=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_attention_equals_serial(
    call: dict[str, Any], mask: str, made: dict[str, Any], batch_first: bool, degree: int
) -> None:
    torch.manual_seed(0)
    net = Attention(call, mask, batch_first=batch_first, **made).double()
    if made.get("dropout"):
        net.eval()  # dropout that drops is proved below, where steps and samples are known
    proof = prove(net, torch.randn(3, 5, 12, dtype=torch.float64), strategy=f"tensor={degree}")
    assert proof.refusal is None


@st.composite
def stacks(draw: st.DrawFn) -> nn.Module:
    """Linear layers, embeddings, norms and attention, with sizes that do not divide."""
    layers: list[nn.Module] = []
    width = draw(st.integers(4, 7))
    if draw(st.booleans()):
        layers.append(nn.Embedding(10, width))
    else:
        layers.append(nn.Linear(10, width))
    for _ in range(draw(st.integers(1, 4))):
        wider = draw(st.integers(4, 9))
        kind = draw(st.sampled_from(["linear", "block", "heads", "norm", "frozen"]))
        if kind == "block":
            layers.append(Block(width, 2 * wider))
        elif kind == "heads":
            layers.append(
                nn.TransformerEncoderLayer(width, width, wider, dropout=0.0, batch_first=True)
            )
        elif kind == "norm":
            layers.append(nn.LayerNorm(width))
        else:
            linear = nn.Linear(width, wider, bias=draw(st.booleans()))
            linear.weight.requires_grad_(kind != "frozen")
            layers += [linear, draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.Softmax(-1)]))]
            width = wider
    layers.append(nn.Linear(width, draw(st.integers(1, 5))))
    return nn.Sequential(*layers)


@given(
    net=stacks(),
    strategy=st.sampled_from(["tensor=2", "tensor=3", "tensor=4", "data=2,tensor=2"]),
)
@settings(max_examples=60, deadline=None)
def test_stacks_of_layers_equal_serial(net: nn.Module, strategy: str) -> None:
    x = torch.arange(20).view(4, 5) % 10
    if isinstance(net[0], nn.Linear):  # type: ignore[index]
        x = torch.randn(4, 5, 10, dtype=torch.float64)
    assert prove(net.double(), x, strategy=strategy).refusal is None


def shared() -> nn.Module:
    linear = nn.Linear(6, 6)
    return nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU(), nn.Linear(6, 3))


MODELS = {
    "mlp": (lambda: DigitsMLP(6, 9, 3), "float"),
    "shared": (shared, "float"),
    "tied": (Tied, "words"),
    "gpt": (lambda: ByteGPT(12, 3, 2, 6), "words"),
    "encoder": (
        lambda: nn.Sequential(
            nn.Linear(6, 12), nn.TransformerEncoderLayer(12, 3, 10, 0.2, batch_first=True)
        ),
        "rows",
    ),
}


def work(name: str, optimizer: str) -> Workload:
    torch.manual_seed(1)
    model, kind = MODELS[name]
    net = model()
    source = np.random.default_rng(0)
    shape = {"float": (14, 6), "rows": (14, 5, 6), "words": (14, 6)}[kind]
    x = source.integers(0, 11, shape) if kind == "words" else source.normal(size=shape)
    with torch.no_grad():
        made = net.double()(torch.from_numpy(x[:1]))
    y = source.normal(size=(14, *made.shape[1:]))
    make = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}[optimizer]
    return Workload(
        model=net,
        data=(x, y),
        test_data=(x[:3], y[:3]),
        loss=nn.MSELoss(),
        optimizer=partial(make, lr=0.01),
        batch_size=6,
        dtype="float64",
    )


@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "data=2,tensor=2"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", list(MODELS))
def test_training_equals_serial_and_sends_what_the_plan_says(
    name: str, optimizer: str, strategy: str
) -> None:
    one = run_on_threads(work(name, optimizer), "serial", 5)
    many = run_on_threads(work(name, optimizer), strategy, 5)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-10)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
    assert_bytes(many)


def test_convolutions_are_split_too() -> None:
    from test_equality import workload

    one, many = (run_on_threads(workload(12, 6), s, 3) for s in ("serial", "tensor=2"))
    assert_same(many, one)


@pytest.mark.parametrize(
    ("model", "strategy", "shape", "says"),
    [
        (nn.Linear(3, 3), "tensor=5", (3,), "widest makes 3 features; the nearest is tensor=3"),
        (nn.Linear(1, 1), "tensor=3", (1,), "widest makes 1 features; the nearest is data=3"),
        (Attention({}, "", batch_first=True), "tensor=6", (5, 12), "has 4; use tensor=4"),
        (
            nn.Conv2d(6, 6, 1, groups=3),
            "tensor=4",
            (6, 4, 4),
            "widest makes 6 features; the nearest is tensor=3",
        ),
        (nn.LayerNorm(3), "tensor=2", (3,), "none that can be split; use data=2"),
        (nn.Conv2d(3, 4, 1), "tensor=2,channel=2", (3, 4, 4), "use channel=4"),
    ],
)
def test_what_cannot_be_split_is_refused(
    model: nn.Module, strategy: str, shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        planned(model, strategy, *shape)


def test_the_nearest_choice_that_is_named_works() -> None:
    for width in (1, 2, 3, 5):
        with pytest.raises(PlanError) as refused:
            planned(nn.Linear(width, width), "tensor=7", width)
        nearest = str(refused.value).split()[-1].rstrip(".")
        wanted = f"tensor={width}" if width > 1 else "data=4"
        assert nearest == wanted
        if width > 1:
            assert planned(nn.Linear(width, width), nearest, width).ranks == width


class Whole(torch.optim.SGD):
    """Divides a gradient by its norm: a share has another."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.grad /= p.grad.norm()
        super().step()


def test_an_optimizer_that_needs_whole_parameters_is_refused() -> None:
    made = work("mlp", "sgd").with_(optimizer=Whole)
    with pytest.raises(PlanError, match="Whole updates a parameter as a whole; use data=2"):
        plan(made, "tensor=2")
    assert plan(made, "data=2").ranks == 2


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_optimizers_of_entries_are_not_refused(optimizer: Any) -> None:
    assert plan(work("mlp", "sgd").with_(optimizer=optimizer), "tensor=2").ranks == 2


@pytest.mark.parametrize("strategy", ["serial", "data=2", "tensor=2", "data=2,tensor=2"])
def test_clipped_gradients_equal_what_torch_does(strategy: str) -> None:
    made = work("mlp", "sgd").with_(clip_norm=0.05)
    model = made.make_model()
    optimizer = made.make_optimizer(list(model.named_parameters()))
    x, y = (torch.from_numpy(array.compute()) for array in (made.x, made.y))
    one = run_on_threads(made, strategy, 1)
    order = Order(14, 6, made.seed)
    rows = order.rows(0, 1, 0, 1)[0].index
    nn.MSELoss()(model(x[rows]), y[rows]).backward()
    before = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    assert before > 0.05
    optimizer.step()
    for name, value in model.named_parameters():
        np.testing.assert_allclose(one.state[f"parameter:{name}"], value.detach(), atol=1e-12)
    assert_bytes(run_on_threads(made, strategy, 5))


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(PlanError, match="clip_norm"):
        plan(work("mlp", "sgd").with_(clip_norm=limit), "serial")
