"""A small model of two inputs: words, and a mask of those that count, added to attention scores."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.workload import Workload

WORDS, LENGTH, CLASSES = 20, 6, 3


class Block(nn.Module):
    """Attention of four heads, spelled out, with what is added to its scores."""

    def __init__(self, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = (len(x), x.shape[1], self.heads, -1)
        made = (layer(x).view(shape) for layer in (self.query, self.key, self.value))
        query, key, value = (each.transpose(1, 2) for each in made)
        scores = query @ key.transpose(-2, -1) * 0.5
        if bias is not None:
            scores = scores + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)
        return x + self.out(mixed.flatten(2))


class Reader(nn.Module):
    """Two blocks and a head; with ``late`` only the last one is given the mask."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.first, self.last = Block(), Block()
        self.head = nn.Linear(8, CLASSES)
        self.late = late

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(words)
        unseen = ~mask if mask.dtype == torch.bool else 1 - mask
        bias = unseen[:, None, None, :].to(x.dtype) * -1e4
        x = self.first(x) if self.late else self.first(x, bias)
        return self.head(self.last(x, bias).mean(1))  # type: ignore[no-any-return]


def arrays(samples: int, kind: str = "bool", seed: int = 0) -> tuple[tuple[Any, Any], Any]:
    """Return ``((words, mask), classes)``; the mask of a sample leaves at least one word."""
    source = np.random.default_rng(seed)
    words = source.integers(0, WORDS, (samples, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < source.integers(1, LENGTH + 1, (samples, 1))
    return (words, mask.astype(kind)), source.integers(0, CLASSES, samples)


def reading(late: bool = False, kind: str = "bool", **changes: Any) -> Workload:
    """Return a workload of it; its last batch of an epoch is short."""
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "model": Reader(late),
        "data": arrays(21, kind),
        "test_data": arrays(9, kind, seed=1),
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "batch_size": 8,
        "dtype": "float64",
    }
    return Workload(**{**values, **changes})
