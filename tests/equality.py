"""A small network that is hard to cut, and what it means that two runs are the same."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from rank_threads import ThreadRun
from torch import Tensor, nn

from workbench.workload import Workload

STEPS = 5


class Net(nn.Module):
    """What makes a cut batch hard: batch statistics, dropout, odd parameters."""

    def __init__(self, norm: bool, dropout: float) -> None:
        super().__init__()
        # A bias before BatchNorm has a gradient of exactly zero, which Adam blows up from rounding.
        self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(3 * 16, 4)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.norm(self.conv(x))))
        return self.head(hidden.flatten(1)) * self.scale + self.frozen.sum()


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def workload(
    samples: int,
    batch_size: int,
    norm: bool = True,
    dropout: float = 0.0,
    optimizer: str = "sgd",
    loss: nn.Module | None = None,
    seed: int = 0,
) -> Workload:
    source = np.random.default_rng(seed)
    torch.manual_seed(seed)
    return Workload(
        model=Net(norm, dropout),  # no factory: ranks that are threads share torch's random state
        data=(source.normal(size=(samples, 1, 4, 4)), source.integers(0, 4, samples)),
        test_data=(source.normal(size=(7, 1, 4, 4)), source.integers(0, 4, 7)),
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=OPTIMIZERS[optimizer],
        batch_size=batch_size,
        seed=seed,
        dtype="float64",
    )


def assert_same(got: ThreadRun, want: ThreadRun) -> None:
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-10, atol=1e-12)
    assert got.state.keys() == want.state.keys()
    for name, value in want.state.items():
        np.testing.assert_allclose(got.state[name], value, rtol=1e-10, atol=1e-11, err_msg=name)
    score, expected = got.outcomes[0].score, want.outcomes[0].score
    assert score is not None
    assert expected is not None
    assert score.accuracy == expected.accuracy
    assert score.loss == pytest.approx(expected.loss, rel=1e-10)


def assert_bytes(run: ThreadRun) -> None:
    """Counted bytes are those of the plan, as integers, on every rank in every full batch."""
    batch = run.plan.batch
    full = [
        step % -(-batch.samples // batch.size) < batch.samples // batch.size
        for step in range(STEPS)
    ]
    for rank, outcome in enumerate(run.outcomes):
        sent = {
            row["sent_bytes"] for row, is_full in zip(outcome.rows, full, strict=True) if is_full
        }
        assert sent == {run.plan.sent_bytes(rank)}
        assert all(row["sent_bytes"] <= run.plan.sent_bytes(rank) for row in outcome.rows)
