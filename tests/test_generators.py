"""The process's generators: what a seed gives does not hang on what other threads do meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import nn

from workbench.generators import seed_all
from workbench.workload import Workload


def test_a_model_made_beside_others_is_the_same_model() -> None:
    halfway, begun_anew = threading.Event(), threading.Event()

    def network() -> nn.Module:
        first = nn.Linear(3, 4)
        halfway.set()
        begun_anew.wait(0.2)  # in vain: the other thread waits until this model is made
        return nn.Sequential(first, nn.Linear(4, 2))

    def elsewhere() -> None:
        halfway.wait(10)
        seed_all(1)
        begun_anew.set()

    work = Workload(model=network, data=(np.ones((4, 3)), np.arange(4) % 2), batch_size=2)
    expected = work.make_model().state_dict()
    halfway.clear()
    other = threading.Thread(target=elsewhere)
    other.start()
    made = work.make_model().state_dict()
    other.join(10)
    assert begun_anew.is_set()
    assert all(torch.equal(made[name], expected[name]) for name in expected)
