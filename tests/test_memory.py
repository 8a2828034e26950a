"""Predicted memory beside measured: parameters, gradients, optimizer state, activations."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.engine import _Trainer
from workbench.layers.weight_gradients import WeightGradients
from workbench.losses import NextByteLoss
from workbench.models import ByteGPT, DenoiseCNN, DigitsCNN, ResidualMLP
from workbench.plan.memory import Memory
from workbench.planning import plan
from workbench.workload import Workload

source = np.random.default_rng(0)


def residual() -> Workload:
    return Workload(
        model=ResidualMLP(24, 32, 64, 4, 10),
        data=(source.normal(size=(16, 24)), source.integers(0, 10, 16)),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        batch_size=16,
    )


def wide() -> Workload:
    """Layers so large that the gradients of their weights wait for more micro-batches."""
    return Workload(
        model=ResidualMLP(24, 256, 320, 4, 10),
        data=(source.normal(size=(64, 24)), source.integers(0, 10, 64)),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        batch_size=64,
    )


def gpt() -> Workload:
    return Workload(
        model=ByteGPT(16, 4, 4, 24),
        data=(source.integers(0, 256, (8, 24)), source.integers(0, 256, (8, 24))),
        loss=NextByteLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        batch_size=8,
    )


def images() -> Workload:
    x = source.normal(size=(4, 3, 24, 20))
    return Workload(model=DenoiseCNN(), data=(x, x), loss=nn.MSELoss(), batch_size=4)


class Block(nn.Module):
    """One layer of torch's own transformer, positions averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]


def block() -> Workload:
    return Workload(
        model=Block(),
        data=(source.normal(size=(8, 12, 16)), source.integers(0, 5, 8)),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        batch_size=8,
    )


class Live:
    """Bytes that autograd keeps, and the most it has kept: storages, each once."""

    def __init__(self, model: nn.Module) -> None:
        self.counts: Counter[int] = Counter()
        self.now = self.most = 0
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters() if not p.is_meta}

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(lambda x: Held(self, x), lambda h: h.tensor)

    def watch(self, weights: WeightGradients) -> None:
        """Count what gradients of weights that wait keep, too."""
        taken = WeightGradients.taken

        def counted(weight: Tensor, product: Any) -> bool:
            object.__setattr__(product, "held", [Held(self, x) for x in (product.x, product.grad)])
            return taken(weights, weight, product)

        weights.taken = counted  # type: ignore[method-assign]


class Held:
    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.tensor = live, tensor
        self.key = tensor.untyped_storage().data_ptr()
        self.nbytes = 0 if self.key in live.own else tensor.untyped_storage().nbytes()
        live.counts[self.key] += 1
        if live.counts[self.key] == 1:
            live.now += self.nbytes
            live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.counts[self.key] -= 1
        if not self.live.counts[self.key]:
            self.live.now -= self.nbytes


def measured(
    monkeypatch: pytest.MonkeyPatch, work: Workload, strategy: str, **options: Any
) -> dict[int, Memory]:
    """Run two steps and look at what every rank has."""
    found: dict[int, Memory] = {}
    step = _Trainer._step

    def watched(self: _Trainer, *which: Any) -> Any:
        live = Live(self.model)
        live.watch(self.weights)
        with live.hooks():
            row = step(self, *which)
        state = [
            value
            for entries in self.updater.optimizer.state.values()
            for value in entries.values()
            if isinstance(value, Tensor)
        ]
        own = self.state.own(dict(self.model.named_parameters()))
        shared = {id(p): p for p in self.updater.gradients.parameters}
        slices = [piece for piece in self.updater.gradients.slices if piece is not None]
        for p, piece in zip(
            self.updater.gradients.parameters, self.updater.gradients.slices, strict=True
        ):
            slices += [p] if piece is None else []
        slices += [p for p in own.values() if p.requires_grad and id(p) not in shared]
        found[self.context.rank] = Memory(
            sum(p.nbytes for p in own.values()),
            sum(piece.nbytes for piece in slices),
            sum(value.nbytes for value in state),
            live.most,
        )
        return row

    monkeypatch.setattr(_Trainer, "_step", watched)
    run_on_threads(work, strategy, 2, **options)
    return found


def fused() -> Workload:
    """Attention with one layer for queries, keys and values, and classes that are split."""
    from test_tensor_fused import FusedAttention

    layers = [nn.Linear(5, 48), FusedAttention("timm", 48, 3), nn.Flatten(), nn.Linear(480, 99)]
    return Workload(
        model=nn.Sequential(*layers),
        data=(source.normal(size=(128, 10, 5)), source.integers(0, 99, 128)),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        batch_size=128,
    )


def pooled() -> Workload:
    """The catalogue's convolutions with pooling, which keeps where it has found each maximum."""
    return Workload(
        model=DigitsCNN,
        data=(source.normal(size=(32, 1, 32, 32)), source.integers(0, 10, 32)),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        batch_size=16,
    )


WORK = {
    **{"residual": residual, "wide": wide, "gpt": gpt, "block": block},
    **{"images": images, "fused": fused, "pooled": pooled},
}


@pytest.mark.parametrize(
    ("name", "strategy", "options"),
    [
        ("residual", "serial", {}),
        ("residual", "data=2", {}),
        ("residual", "tensor=2", {}),
        ("residual", "pipeline=2", {"accumulate": 4}),
        ("residual", "pipeline=2", {"accumulate": 4, "schedule": "gpipe"}),
        ("residual", "pipeline=2", {"accumulate": 4, "recompute": "yes"}),
        ("residual", "data=2,tensor=2", {}),
        ("residual", "sharded=2,tensor=2", {}),
        ("residual", "sharded=2,pipeline=2", {"accumulate": 4}),
        *(("residual", "sharded=2", {"stage": stage}) for stage in (1, 2, 3)),
        ("gpt", "serial", {}),
        ("gpt", "data=2", {}),
        ("gpt", "sharded=2", {"stage": 3}),
        ("gpt", "tensor=2", {}),
        ("gpt", "pipeline=2", {"accumulate": 4}),
        ("fused", "tensor=2", {}),
        ("gpt", "pipeline=2", {"accumulate": 4, "schedule": "gpipe"}),
        ("gpt", "pipeline=2", {"accumulate": 4, "recompute": "yes"}),
        ("gpt", "pipeline=2,tensor=2", {"accumulate": 4, "sequence": "split"}),
        ("block", "serial", {}),
        ("block", "data=2", {}),
        ("block", "sharded=2", {"stage": 3}),
        ("block", "tensor=2", {}),
        ("block", "pipeline=2", {"accumulate": 4}),
        ("images", "serial", {}),
        ("images", "data=2", {}),
        ("images", "sharded=2", {"stage": 3}),
        ("images", "channel=2", {}),
        ("images", "data=2,channel=2", {}),
        ("images", "spatial=2", {}),
        ("images", "channel=2,spatial=2", {}),
        ("images", "tensor=2,spatial=2", {}),
        ("images", "pipeline=2,spatial=2", {"accumulate": 4}),
        ("images", "pipeline=2,spatial=2", {"accumulate": 4, "recompute": "yes"}),
        ("images", "pipeline=2", {"accumulate": 4}),
        ("images", "pipeline=2", {"accumulate": 4, "schedule": "gpipe"}),
        ("gpt", "pipeline=2", {"accumulate": 4, "schedule": "interleaved"}),
        *(
            (name, "pipeline=2", {"accumulate": 8, "schedule": schedule})
            for name in ("wide", "gpt", "residual")
            for schedule in ("1f1b", "gpipe", "zb-h1")
        ),
        ("images", "pipeline=2", {"accumulate": 4, "schedule": "zb-h1"}),
        ("images", "pipeline=2,spatial=2", {"accumulate": 4, "schedule": "zb-h1"}),
        ("gpt", "pipeline=2,tensor=2", {"accumulate": 4, "schedule": "zb-h1"}),
        ("gpt", "pipeline=3", {"accumulate": 4, "schedule": "zb-h1", "recompute": "yes"}),
        ("pooled", "serial", {}),
        ("pooled", "spatial=2", {}),
        ("pooled", "channel=2", {}),
        ("pooled", "data=2,spatial=2", {}),
    ],
)
def test_what_is_kept_is_what_was_predicted(
    monkeypatch: pytest.MonkeyPatch, name: str, strategy: str, options: dict[str, Any]
) -> None:
    work = WORK[name]()
    planned = plan(work, strategy, **options)
    for rank, got in measured(monkeypatch, work, strategy, **options).items():
        want = planned.memory(rank)
        assert got.parameters_bytes == want.parameters_bytes
        assert got.gradients_bytes == want.gradients_bytes
        assert got.optimizer_bytes == want.optimizer_bytes
        assert got.activations_bytes == pytest.approx(want.activations_bytes, rel=0.1)


def test_the_plan_says_who_keeps_most() -> None:
    found = plan(residual(), "pipeline=2", accumulate=4)
    assert found.bytes_per_rank == max(found.memory(rank).total_bytes for rank in range(2))
    assert "Kept by the rank with most (predicted)" in str(found)
    again = plan(residual(), "pipeline=2", accumulate=4, recompute="yes")
    assert again.memory(0).activations_bytes < found.memory(0).activations_bytes
