"""Models whose replicas or shares cannot give the serial result: the plan says so, or refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import PlanError
from workbench.losses import on_device
from workbench.models import ByteGPT, DigitsCNN
from workbench.plan import Plan
from workbench.planning import plan
from workbench.verify import verify
from workbench.workload import Workload


class Coded(nn.Module):
    """A linear layer and some code."""

    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.code, self.layer = code, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.layer(x))


def planned(
    model: nn.Module, strategy: str, *shape: int, integers: bool = False, **options: Any
) -> Plan:
    x = np.zeros((8, *shape), np.int64 if integers else np.float32)
    with torch.no_grad():
        y = model(torch.from_numpy(x))
    work = Workload(
        model=model, data=(x, np.zeros(y.shape, np.float32)), loss=nn.MSELoss(), batch_size=6
    )
    return plan(work, strategy, **options)


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: x.cumsum(0),
    "max": lambda x: x / x.max(),
    "mean": lambda x: x - x.mean(0),
    "sort": lambda x: torch.sort(x, 0)[0],
    "count": lambda x: x / x.shape[0],
    "product": lambda x: x @ x.T @ x,
    "roll": lambda x: x.roll(1, 0),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.shape[0], -1),
    "rows": lambda x: x.reshape(-1, 2).reshape(x.shape[0], 4),
    "loop": lambda x: torch.stack([row * 2 for row in x]),
    "indices": lambda x: x[torch.arange(x.shape[0]), x.argmax(1)][:, None] * x,
    "outer": lambda x: torch.bmm(x[:, :, None], x[:, None, :]).flatten(1),
    "zeros": lambda x: x + torch.zeros(x.shape[0], 4),
}


@pytest.mark.parametrize("code", MIXED)
@pytest.mark.parametrize("strategy", ["data=2", "sharded=2"])
def test_code_that_mixes_samples_is_noted(code: str, strategy: str) -> None:
    (note,) = [n for n in planned(Coded(MIXED[code]), strategy, 4).notes if "mixes the" in n]
    assert "Coded.forward" in note
    assert "not that of the serial run" in note
    assert not verify(Coded(MIXED[code]), torch.randn(6, 4), strategy=strategy).same_result


@pytest.mark.parametrize("code", APART)
def test_code_that_keeps_samples_apart_is_not(code: str) -> None:
    assert not any("serial run" in n for n in planned(Coded(APART[code]), "data=2", 4).notes)
    assert verify(Coded(APART[code]), torch.randn(6, 4), strategy="data=2").same_result


def test_models_that_people_train_are_not() -> None:
    encoder = nn.TransformerEncoderLayer(12, 3, 10, 0.2, batch_first=True)
    for model, shape, integers in (
        (encoder, (5, 12), False),
        (ByteGPT(width=8, heads=2, blocks=1, length=6), (6,), True),
        (DigitsCNN(), (1, 32, 32), False),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)), (4,), False),
    ):
        notes = planned(model, "data=2", *shape, integers=integers).notes
        assert not any("not that of" in n or "number by number" in n for n in notes), notes


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, 2, batch_first=True, dropout=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (Recurrent(), (5, 4), "LSTM.* draws random numbers"),
        (nn.Sequential(nn.Linear(4, 4), nn.RReLU()), (4,), r"layer '1' \(RReLU\) draws random"),
        (Coded(partial(F.dropout, p=0.5)), (4,), "Coded.forward draws random numbers"),
    ],
)
def test_layers_that_draw_their_own_random_numbers_are_noted(
    model: nn.Module, shape: tuple[int, ...], says: str
) -> None:
    notes = "\n".join(planned(model, "data=2", *shape).notes)
    assert "not the same number by number" in notes
    assert re.search(says, notes), notes


@pytest.mark.parametrize(
    ("strategy", "options", "who"),
    [
        ("pipeline=2", {"accumulate": 1}, "stages have other ones than the serial run"),
        ("pipeline=2", {}, "stages and micro-batches have other ones than the serial run"),
        ("serial", {"accumulate": 2}, "micro-batches have other ones than one pass over the whole"),
        ("data=2,pipeline=2", {"accumulate": 1}, "replicas and stages have other ones"),
        ("tensor=2", {}, ""),
        ("serial", {}, ""),
    ],
)
def test_whoever_draws_others_is_named(strategy: str, options: dict[str, Any], who: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Coded(partial(F.dropout, p=0.5)), nn.Linear(4, 4))
    notes = [n for n in planned(model, strategy, 4, **options).notes if "number by number" in n]
    assert len(notes) == bool(who)
    assert all(who in note for note in notes), notes


def test_micro_batches_mix_their_own_samples() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Coded(MIXED["mean"]))
    (note,) = [n for n in planned(model, "serial", 4, accumulate=2).notes if "mixes the" in n]
    assert "each micro-batch mixes its own ones" in note
    assert "not that of one pass over the whole batch" in note
    notes = planned(model, "pipeline=2", 4, accumulate=1).notes  # a stage has all samples
    assert not any("mixes the" in n for n in notes)


def test_an_embedding_that_counts_words_in_the_batch_is_refused_between_replicas() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, scale_grad_by_freq=True), nn.Linear(4, 2))
    for strategy in ("data=2", "sharded=2"):
        with pytest.raises(PlanError, match=r"Layer '0' \(Embedding\).*scale_grad_by_freq=False"):
            planned(model, strategy, 5, integers=True)
    planned(model, "tensor=2", 5, integers=True)
    with pytest.raises(PlanError, match="or serial with accumulate=1"):
        planned(model, "serial", 5, integers=True, accumulate=2)


def clamped() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].weight.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
    return model


def test_a_hook_on_the_gradient_of_a_parameter_is_refused_where_it_would_see_a_part() -> None:
    data = (np.zeros((8, 5)), np.zeros((8, 3)))
    work = Workload(model=clamped, data=data, loss=nn.MSELoss(), batch_size=6)
    says = r"'0\.weight' has a hook.*use serial with accumulate=1"
    for strategy, accumulate in (("data=2", 1), ("tensor=2", 1), ("pipeline=2", 1), ("serial", 2)):
        with pytest.raises(PlanError, match=says):
            plan(work, strategy, accumulate=accumulate)
    plan(work, "serial")
    with pytest.raises(PlanError, match=r"'0\.weight' has a hook, which no copy .* model=make"):
        Workload(model=clamped(), data=data, loss=nn.MSELoss(), batch_size=6)


class Centred(torch.autograd.Function):
    """Mixes features on the way back only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] - grads[0].mean(1, keepdim=True)


def hooked(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda grad: grad - grad.mean(1, keepdim=True))
    return x


class Between(nn.Module):
    """Code between two layers that makes gradients of its own."""

    def __init__(self, first: nn.Module, code: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.code, self.last = first, code, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.code(self.first(x))))


@pytest.mark.parametrize("code", [Centred.apply, hooked], ids=["function", "hook"])
def test_code_with_gradients_of_its_own_has_whole_arrays(code: Callable[[Tensor], Tensor]) -> None:
    features = Between(nn.Linear(4, 6), code, nn.Linear(6, 4))
    images = Between(nn.Conv2d(1, 4, 3, padding=1), code, nn.Conv2d(4, 2, 3, padding=1))
    assert verify(features, torch.randn(6, 4), strategy="tensor=2").same_result
    assert verify(images, torch.randn(2, 1, 6, 6), strategy="channel=2").same_result
    refusal = verify(images, torch.randn(2, 1, 6, 6), strategy="spatial=2").refusal
    assert refusal is not None
    assert "Between.forward mixes its positions" in refusal
    assert "of its own" in refusal or "register_hook" in refusal


def test_a_model_that_asks_for_gradients_itself_is_refused_by_that_name() -> None:
    def force(x: Tensor) -> Tensor:
        return torch.autograd.grad(x.tanh().sum(), x, create_graph=True)[0]

    x = np.zeros((8, 4))
    work = Workload(model=Coded(force), data=(x, x), loss=nn.MSELoss(), batch_size=4)
    with pytest.raises(PlanError, match=r"Coded.forward asks for gradients \(torch.aut"):
        plan(work, "data=2")


def test_tensors_that_a_loss_holds_go_to_the_device() -> None:
    weight, meta = torch.ones(3), torch.device("meta")

    def closed(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, weight)

    def defaulted(output: Tensor, target: Tensor, weight: Tensor = weight) -> Tensor:
        return F.cross_entropy(output, target, weight)

    output = torch.zeros(4, 3, device=meta)
    for loss in (
        nn.CrossEntropyLoss(weight=weight.clone()),
        partial(F.cross_entropy, weight=weight),
        closed,
        defaulted,
        partial(defaulted, weight=weight),
    ):
        moved = on_device(loss, meta)
        assert moved(output, torch.zeros(4, 3, device=meta)).device == meta
    assert on_device(F.cross_entropy, meta) is F.cross_entropy
    assert weight.device.type == "cpu"
