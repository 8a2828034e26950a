"""Accuracy on the training batch in hand: as the serial run's for every strategy, at no message."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from equality import workload
from rank_threads import ThreadRun, run_on_threads
from test_tensor_loss import CLASSES, Words
from torch import Tensor, nn

from workbench.accuracy import BatchAccuracy, accuracies
from workbench.judging import FEWEST_BETWEEN, Judge
from workbench.measured import join
from workbench.records import RunFolder, read
from workbench.strategies import splitting
from workbench.workload import Workload


def accuracy_of(run: ThreadRun) -> dict[int, float]:
    return accuracies(outcome.judged for outcome in run.outcomes)


class Segments(nn.Module):
    """A class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


def segments() -> Workload:
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    return Workload(
        model=Segments(),
        data=(source.normal(size=(10, 1, 7, 6)), source.integers(0, 3, (10, 7, 6))),
        loss=nn.CrossEntropyLoss(ignore_index=2),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        batch_size=4,
        dtype="float64",
    )


@pytest.mark.parametrize(
    "strategy", ["data=3", "sharded=2", "tensor=2", "pipeline=2", "channel=2", "data=2,pipeline=2"]
)
def test_accuracy_is_that_of_the_serial_run(strategy: str) -> None:
    def trained(strategy: str) -> ThreadRun:
        work = workload(samples=14, batch_size=5, norm=False)
        return run_on_threads(work, strategy, 13, accumulate=2)

    want, got = accuracy_of(trained("serial")), trained(strategy)
    assert list(want) == [0, 10, 12]
    assert accuracy_of(got) == want
    assert len(set(want.values())) > 1


@pytest.mark.parametrize("strategy", ["spatial=3", "data=2,spatial=2"])
def test_pixels_are_counted_where_they_are(strategy: str) -> None:
    want = accuracy_of(run_on_threads(segments(), "serial", 11))
    assert accuracy_of(run_on_threads(segments(), strategy, 11)) == want
    counts = run_on_threads(segments(), "serial", 1).outcomes[0].judged[0]
    assert 0 < counts[1] < 4 * 7 * 6  # one class is left out


def test_shares_of_classes_are_judged_by_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "MESSAGE_BYTES", 0)

    def trained(strategy: str) -> ThreadRun:
        source = np.random.default_rng(0)
        torch.manual_seed(0)
        work = Workload(
            model=Words(),
            data=(source.integers(0, CLASSES, (9, 6)), source.integers(0, 4, (9, 6))),
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.Adam, lr=0.1),
            batch_size=3,
            dtype="float64",
        )
        return run_on_threads(work, strategy, 11)

    want, run = trained("serial"), trained("tensor=2")
    assert run.plan.class_cuts
    assert accuracy_of(run) == accuracy_of(want)
    assert max(accuracy_of(want).values()) > 0


@pytest.mark.parametrize("strategy", ["serial", "tensor=2"])
def test_a_model_that_says_nothing_has_the_accuracy_of_its_first_class(
    monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(splitting, "MESSAGE_BYTES", 0)
    targets = np.arange(9 * 6).reshape(9, 6) % 4
    model = Words()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    work = Workload(
        model=model,
        data=(np.zeros((9, 6), int), targets),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.0),
        batch_size=9,
        dtype="float64",
    )
    run = run_on_threads(work, strategy, 1)
    assert bool(run.plan.class_cuts) == (strategy != "serial")
    assert accuracy_of(run)[0] == (targets == 0).mean()


def test_without_classes_there_is_no_accuracy() -> None:
    source = np.random.default_rng(0)
    work = Workload(
        model=partial(nn.Linear, 3, 2),
        data=(source.normal(size=(8, 3)), source.normal(size=(8, 2))),
        loss=nn.MSELoss(),
        batch_size=4,
    )
    run = run_on_threads(work, "data=2", 3)
    assert accuracy_of(run) == {}


def test_a_share_of_the_steps_is_looked_at() -> None:
    judge = Judge(nn.CrossEntropyLoss(), 100, 1000, shares=False)
    for step in range(100, 1100):
        judge.begin(step)
        judge.take(torch.eye(3), torch.tensor([0, 1, 1]), 3)
        judge.end(step)
    found = judge.counts()
    assert list(found) == [*range(100, 1100, 50), 1099]
    assert set(found.values()) == {(2, 3)}
    assert FEWEST_BETWEEN > 1  # a few per cent of a short step are then less than one in all


def test_a_stand_in_is_not_counted() -> None:
    judge = Judge(nn.CrossEntropyLoss(), 0, 1, shares=False)
    judge.begin(0)
    judge.take(torch.eye(3), torch.tensor([0, 1, 1]), 3)
    judge.take(torch.eye(3)[:1], torch.tensor([0]), 0)
    judge.end(0)
    assert judge.counts() == {0: (2, 3)}


def test_live_accuracy_waits_for_every_rank() -> None:
    live = BatchAccuracy(2)
    assert live.add(0, {0: (1, 2), 10: (2, 2)}) == []
    assert live.add(1, {0: (1, 4)}) == [{"step": 0, "accuracy": 2 / 6}]
    assert live.add(1, {10: (0, 0)}) == [{"step": 10, "accuracy": 1.0}]


def test_what_is_told_later_goes_into_its_step(tmp_path: Path) -> None:
    rows = [{"step": 4, "loss": 2.0}, {"step": 5, "loss": 1.0}]
    later = [{"step": 4, "accuracy": 0.5}, {"step": 3, "accuracy": 0.25}]
    want = [{"step": 4, "loss": 2.0, "accuracy": 0.5}, {"step": 5, "loss": 1.0}]
    folder = RunFolder(tmp_path / "run")
    folder.write_summary({})
    folder.add(rows, [], 1)
    folder.add(later, [], 1)
    assert read(folder.path)[1] == want
    folder.close()
    join(rows, later)
    assert rows == want
