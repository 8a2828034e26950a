"""Losses of one's own, of one output or of several, in parts: as the serial run has them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from equality import assert_bytes, assert_same
from rank_threads import ThreadRun, run_on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import PlanError, RunError
from workbench.planning import plan
from workbench.workload import Workload

CLASSES, SAMPLES = 3, 24
WEIGHT = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)


class Two(NamedTuple):
    """What a model gives, by name."""

    a: Tensor
    b: Tensor


@dataclass
class Record:
    """What a model gives, in a dataclass."""

    a: Tensor
    b: Tensor | None = None


class Output(OrderedDict):  # type: ignore[type-arg]
    """As in transformers: a dict whose items are attributes, and which must not be updated."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("no update")


def output(**items: Tensor) -> Output:
    made = Output()
    for key, value in items.items():
        made[key] = value
    return made


GIVEN: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "tuple": lambda a, b: (a, b),
    "named tuple": Two,
    "dataclass": Record,
    "as transformers": output,
}


class Net(nn.Module):
    """Some layers; what they give is one tensor, or that and another in a container."""

    def __init__(self, given: str = "") -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head, self.other = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)
        self.given = given

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        if not self.given:
            return self.head(hidden)
        return GIVEN[self.given](a=self.head(hidden), b=self.other(hidden))


def labels(none: int) -> np.ndarray:
    """Return labels of which some mean nothing, in small parts of a batch all of them."""
    found = np.random.default_rng(1).integers(0, CLASSES, SAMPLES)
    found[[1, 2, 5, 11, 12, 13, 18]] = none
    return found


def numbers(columns: int = CLASSES, zeros: bool = False) -> np.ndarray:
    source = np.random.default_rng(2)
    found = source.uniform(0.1, 1, (SAMPLES, columns))
    return found * (source.random(found.shape) < 0.6) if zeros else found


def by_sample(o: Tensor, t: Tensor) -> Tensor:
    """The last target of a sample is its weight."""
    each = (o - t[:, :CLASSES]).square().mean(1)
    return (each * t[:, CLASSES]).sum() / t[:, CLASSES].sum()


def masked(o: Tensor, t: Tensor) -> Tensor:
    counted = (t != 0).to(o)
    return ((o - t).square() * counted).sum() / counted.sum().clamp(min=1)


class Ignoring(nn.Module):
    """A module of one's own around one of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1, label_smoothing=0.1)

    def forward(self, o: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.loss(o, t)
        return found


LOSSES: dict[str, tuple[Callable[[Any, Tensor], Tensor], np.ndarray]] = {
    "ignored": (lambda o, t: F.cross_entropy(o, t, ignore_index=-1), labels(-1)),
    "ignored by default": (lambda o, t: F.cross_entropy(o, t), labels(-100)),
    "ignored class": (lambda o, t: F.cross_entropy(o, t, ignore_index=0), labels(0)),
    "weight of classes": (lambda o, t: F.cross_entropy(o, t, weight=WEIGHT), labels(1)),
    "module": (Ignoring(), labels(-1)),
    "counted": (
        lambda o, t: (
            F.cross_entropy(o, t.clamp(min=0), reduction="none") * (t >= 0) / (t >= 0).sum()
        ).sum(),
        labels(-7),
    ),
    "mean": (lambda o, t: F.mse_loss(o, t), numbers()),
    "sum": (lambda o, t: F.mse_loss(o, t, reduction="sum"), numbers()),
    "sum of those that count": (
        lambda o, t: F.cross_entropy(o, t, ignore_index=-1, reduction="sum"),
        labels(-1),
    ),
    "mean of each": (lambda o, t: F.l1_loss(o, t, reduction="none").sum(1).mean(), numbers()),
    "weight of samples": (by_sample, numbers(CLASSES + 1)),
    "weight of yes": (
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=WEIGHT),
        numbers(),
    ),
    "divided by the targets": (lambda o, t: (o - t).square().sum() / t.sum(), numbers()),
    "masked": (masked, numbers(zeros=True)),
}

WAYS: dict[str, dict[str, Any]] = {
    "serial": {"accumulate": 2},
    "data=3": {"accumulate": 2},
    "data=2": {},
    "pipeline=2": {},
    "tensor=2": {},
    "sharded=2": {"accumulate": 2},
    "data=2,tensor=2": {},
    "data=2,pipeline=2": {},
}


def workload(
    loss: Callable[[Any, Tensor], Tensor], y: np.ndarray, given: str = "", batch: int = 7
) -> Workload:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(SAMPLES, 4))
    return Workload(
        model=Net(given),
        data=(x, y),
        test_data=(x[:9], y[:9]),
        loss=loss,
        batch_size=batch,
        dtype="float64",
    )


def of_several(loss: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Return the loss of one output of several, and of another, which it divides by the same."""

    def found(o: Any, t: Tensor) -> Tensor:
        a, b = tuple(o.values()) if isinstance(o, dict) else (o[0], o[1])
        return loss(a, t) + 0.3 * loss(b, t)

    return found


@cache
def serial(name: str, given: str = "") -> ThreadRun:
    loss, y = LOSSES[name]
    return run_on_threads(workload(of_several(loss) if given else loss, y, given), "serial", 5)


FEW = ("ignored", "sum", "mean")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, strategy) for name in LOSSES for strategy in list(WAYS)[:2]),
        *((name, strategy) for name in FEW for strategy in list(WAYS)[2:]),
    ],
)
def test_a_loss_of_ones_own_in_parts_equals_serial(name: str, strategy: str) -> None:
    many = run_on_threads(workload(*LOSSES[name]), strategy, 5, **WAYS[strategy])
    assert_same(many, serial(name))
    assert_bytes(many)


@pytest.mark.parametrize("strategy", WAYS)
@pytest.mark.parametrize("name", FEW)
def test_a_loss_of_several_outputs_in_parts_equals_serial(name: str, strategy: str) -> None:
    loss, y = LOSSES[name]
    many = run_on_threads(workload(of_several(loss), y, "dict"), strategy, 5, **WAYS[strategy])
    assert_same(many, serial(name, "dict"))
    assert_bytes(many)


@pytest.mark.parametrize("strategy", ["data=2", "pipeline=2", "tensor=2"])
@pytest.mark.parametrize("given", [given for given in GIVEN if given != "dict"])
def test_outputs_may_be_in_any_container(given: str, strategy: str) -> None:
    def loss(o: Any, t: Tensor) -> Tensor:
        a = o[0] if isinstance(o, tuple) else o.a
        return F.cross_entropy(a, t, ignore_index=-1)

    made = workload(loss, labels(-1), given)
    one, many = (run_on_threads(made, each, 5) for each in ("serial", strategy))
    assert_same(many, one)  # what is behind the other output has no gradient, and no momentum


@pytest.mark.parametrize("strategy", ["data=2", "pipeline=2"])
def test_in_bfloat16_too(strategy: str) -> None:
    def loss(o: Any, t: Tensor) -> Tensor:
        return F.cross_entropy(o.a, t, ignore_index=-1)

    made = workload(loss, labels(-1), "as transformers").with_(dtype="float32")
    one = run_on_threads(made, "serial", 5, precision="bf16")
    many = run_on_threads(made, strategy, 5, precision="bf16")
    np.testing.assert_allclose(many.losses, one.losses, rtol=0.02)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x)
        return found


def mean_of_means(o: Tensor, t: Tensor) -> Tensor:
    """The mean over samples of the mean over the pixels of each that count."""
    each = F.cross_entropy(o, t, reduction="none", ignore_index=-1)
    return (each.sum((1, 2)) / (t != -1).sum((1, 2))).mean()


@pytest.mark.parametrize("strategy", ["spatial=2", "spatial=3", "data=2,spatial=2"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.cross_entropy(o, t, ignore_index=-1),
        lambda o, t: F.cross_entropy(o, t, ignore_index=-1, reduction="sum"),
        mean_of_means,
    ],
)
def test_a_loss_of_pixels_in_parts_equals_serial(
    loss: Callable[[Any, Tensor], Tensor], strategy: str
) -> None:
    source = np.random.default_rng(0)
    x, y = source.normal(size=(11, 1, 5, 4)), source.integers(-1, CLASSES, (11, 5, 4))
    y[:, :2] = np.where(source.random((11, 2, 4)) < 0.6, -1, y[:, :2])
    y[:, 4, 0] = 1  # no picture is left out altogether
    torch.manual_seed(0)
    made = Workload(
        model=Images(),
        data=(x, y),
        test_data=(x[:5], y[:5]),
        loss=loss,
        batch_size=4,
        dtype="float64",
    )
    one, many = (run_on_threads(made, each, 5) for each in ("serial", strategy))
    assert_same(many, one)
    gathered = any("output: whole" in c.name for c in many.plan.collectives)
    assert gathered == (loss is mean_of_means)


NEITHER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "root": lambda o, t: F.mse_loss(o, t).sqrt(),
    "dice": lambda o, t: 1 - 2 * (o * t).sum() / (o.sum() + t.sum()),
    "by the output": lambda o, t: ((o - t).square() * (o > 0.5)).sum() / (o > 0.5).sum(),
    "among samples": lambda o, t: (o @ t.T).log_softmax(1).diagonal().mean(),
    "two ways": lambda o, t: F.mse_loss(o, t) + F.l1_loss(o, t, reduction="sum"),
}


@pytest.mark.parametrize("given", ["", "dict"])
@pytest.mark.parametrize("name", NEITHER)
def test_what_parts_do_not_make_up_is_refused(name: str, given: str) -> None:
    loss = of_several(NEITHER[name]) if given else NEITHER[name]
    made = workload(loss, numbers(), given)
    for strategy, accumulate in (("data=2", 1), ("pipeline=2", None), ("serial", 2)):
        with pytest.raises(PlanError, match=r"neither the mean nor the sum.*ignore_index"):
            plan(made, strategy, accumulate=accumulate)
    if given:
        assert any("neither the mean nor the sum" in note for note in plan(made).notes)


def twice(o: Any, t: Tensor) -> Tensor:
    """Two means, one without the labels that are left out."""
    return F.cross_entropy(o["a"], t) + 0.1 * o["b"].square().mean()


def test_two_divisors_are_one_where_all_labels_count() -> None:
    made = workload(twice, labels(2), "dict")
    one, many = (run_on_threads(made, each, 5) for each in ("serial", "data=2"))
    assert_same(many, one)


@pytest.mark.parametrize(("strategy", "accumulate"), [("data=2", 1), ("serial", 2)])
def test_two_divisors_end_the_run_where_some_do_not(strategy: str, accumulate: int) -> None:
    made = workload(twice, labels(-100), "dict")
    with pytest.raises(RunError, match="divides by several numbers"):
        run_on_threads(made, strategy, 5, accumulate=accumulate)
    score = run_on_threads(made, "serial", 5, accumulate=1).outcomes[0].score
    assert score is not None
    assert np.isfinite(score.loss)


def test_a_loss_that_takes_no_made_up_outputs_goes_on_in_serial() -> None:
    def loss(o: Any, t: Tensor) -> Tensor:
        assert (o["a"] < 0).any(), "all positive"
        return F.mse_loss(o["a"], t)

    made = workload(loss, numbers(), "dict")
    assert any("all positive" in note for note in plan(made).notes)
    assert run_on_threads(made, "serial", 2).losses[0] > 0
    with pytest.raises(PlanError, match=r"does not take .*\(3, 3\), \(3, 3\).*all positive"):
        plan(made, "data=2")
