"""Cross-entropy of classes that ranks have shares of: as torch's, with less sent."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from equality import assert_bytes, assert_same
from rank_threads import ThreadRun, run_on_threads
from test_tensor import choices, moved
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.losses import NextByteLoss
from workbench.planning import plan
from workbench.strategies import splitting
from workbench.workload import Workload

CLASSES = 29


class Words(nn.Module):
    """Scores of words at every position, classes last or in dim 1."""

    def __init__(self, classes_last: bool = False) -> None:
        super().__init__()
        self.classes_last = classes_last
        self.words = nn.Embedding(CLASSES, 6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(F.gelu(self.hidden(self.words(x))))
        return scores if self.classes_last else scores.transpose(1, 2)


@pytest.fixture
def small_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bytes alone decide, since the outputs of a test are too few for what a message costs."""
    monkeypatch.setattr(splitting, "MESSAGE_BYTES", 0)


def images() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, CLASSES))


LOSSES: dict[str, Any] = {
    "plain": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "ignored": nn.CrossEntropyLoss(ignore_index=3),
    "weighted": nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, CLASSES).double()),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "all": nn.CrossEntropyLoss(
        weight=torch.linspace(0.5, 2, CLASSES).double(), ignore_index=3, label_smoothing=0.1
    ),
    "function": partial(F.cross_entropy, label_smoothing=0.1, reduction="sum"),
}


def workload(loss: Any, kind: str = "words", optimizer: str = "sgd", batch: int = 6) -> Workload:
    torch.manual_seed(1)
    source = np.random.default_rng(0)
    model = {"words": Words, "last": lambda: Words(classes_last=True), "images": images}[kind]()
    if kind == "images":
        x, y = source.normal(size=(14, 5)), source.integers(0, CLASSES, 14)
    else:
        x, y = (source.integers(0, CLASSES, (14, 7)) for _ in range(2))
    make = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}[optimizer]
    return Workload(
        model=model,
        data=(x, y),
        test_data=(x[:5], y[:5]),
        loss=loss,
        optimizer=partial(make, lr=0.01),
        batch_size=batch,
        dtype="float64",
    )


@cache
def serial(name: str, kind: str) -> ThreadRun:
    return run_on_threads(workload(LOSSES[name], kind), "serial", 5)


@pytest.mark.usefixtures("small_outputs")
@pytest.mark.parametrize("strategy", ["tensor=2", "tensor=3", "data=2,tensor=2"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "words") for name in LOSSES), ("plain", "images"), ("all", "images")],
)
def test_a_loss_of_shares_of_the_classes_equals_serial(name: str, strategy: str, kind: str) -> None:
    many = run_on_threads(workload(LOSSES[name], kind), strategy, 5)
    assert many.plan.class_cuts
    assert_same(many, serial(name, kind))
    assert_bytes(many)


@pytest.mark.usefixtures("small_outputs")
@pytest.mark.parametrize(
    ("kind", "strategy", "optimizer"),
    [
        ("last", "tensor=4", "adam"),
        ("words", "pipeline=2,tensor=2", "adam"),
        ("words", "sharded=2,tensor=2", "sgd"),
    ],
)
def test_so_it_does_under_hybrids_and_with_classes_last(
    kind: str, strategy: str, optimizer: str
) -> None:
    loss = NextByteLoss() if kind == "last" else nn.CrossEntropyLoss(ignore_index=2)
    one = run_on_threads(workload(loss, kind, optimizer), "serial", 5)
    many = run_on_threads(workload(loss, kind, optimizer), strategy, 5)
    assert many.plan.class_cuts
    assert_same(many, one)
    assert_bytes(many)


@pytest.mark.usefixtures("small_outputs")
def test_micro_batches_without_a_sample_that_counts_take_part() -> None:
    """One replica has no sample in some micro-batches, and all of one are left out."""
    loss = nn.CrossEntropyLoss(ignore_index=3)
    made = workload(loss, "images", batch=3)
    one, many = (run_on_threads(made, s, 5, accumulate=2) for s in ("serial", "data=2,tensor=2"))
    assert_same(many, one)
    assert_bytes(many)


@pytest.mark.usefixtures("small_outputs")
def test_the_plan_says_what_travels_instead_of_the_outputs() -> None:
    found = plan(workload(nn.CrossEntropyLoss(label_smoothing=0.1)), "tensor=2")
    assert choices(found)["head"] == "filters"
    assert "head: whole output" not in moved(found)
    numbers = {c.name: (c.numel, c.per_sample) for c in found.collectives if "classes" in c.name}
    assert numbers == {
        "head: largest of classes": (7, True),
        "head: sums of classes": (21, True),
    }
    assert "head: sums of classes" in str(found)
    assert "cross-entropy of shares of the classes: no rank has all outputs" in found.notes


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: F.cross_entropy(outputs.exp(), targets),
        nn.NLLLoss(),
        nn.MultiMarginLoss(),
    ],
)
def test_another_loss_has_the_outputs_gathered(loss: Any) -> None:
    found = plan(workload(loss, "images"), "tensor=2")
    assert not found.class_cuts
    assert_same(
        run_on_threads(workload(loss, "images"), "tensor=2", 3),
        run_on_threads(workload(loss, "images"), "serial", 3),
    )


def test_few_outputs_are_gathered_since_a_message_costs_more() -> None:
    assert not plan(workload(nn.CrossEntropyLoss(), "images"), "tensor=2").class_cuts
