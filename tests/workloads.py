"""Small workloads for tests."""

from __future__ import annotations

import numpy as np
from torch import nn

from workbench.workload import Workload

X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
Y = np.arange(12) % 2


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def make(**changes) -> Workload:
    return Workload(**{"model": net, "data": (X, Y), "batch_size": 4, **changes})
