"""The process's generators: what a seed gives does not hang on what other threads do meanwhile."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import nn

from workbench import engine
from workbench.generators import again_from, moment, seed_all
from workbench.mesh import Mesh
from workbench.resuming import draws_on
from workbench.strategies.notation import parse
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


def drawn(device: str = "cpu") -> list[float]:
    """Draw from every generator there is, twice from those that keep one for later."""
    by_torch = [torch.rand((), device=device).item(), torch.rand(()).item()]
    return [*by_torch, np.random.normal(), random.gauss(0, 1), random.random(), np.random.rand()]


def test_what_was_drawn_is_drawn_again_and_then_what_comes_next() -> None:
    seed_all(3)
    np.random.normal(), random.gauss(0, 1)
    then = moment(torch.device("cpu"))
    first, second = drawn(), drawn()
    seed_all(3)
    np.random.normal(), random.gauss(0, 1)
    assert drawn() == first
    with again_from(then, torch.device("cpu")):
        assert drawn() == first
    assert drawn() == second


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_again_too() -> None:
    device = torch.device("cuda", 0)
    seed_all(3)
    then = moment(device)
    first, second = drawn("cuda:0"), drawn("cuda:0")
    with again_from(then, device):
        assert drawn("cuda:0") == first
    assert first != second
    third = drawn("cuda:0")
    seed_all(3)
    assert [drawn("cuda:0") for _ in range(3)] == [first, second, third]


def test_ranks_draw_the_same_if_and_only_if_they_compute_the_same() -> None:
    mesh = Mesh((("data", 2), ("sharded", 2), ("pipeline", 3), ("tensor", 2), ("spatial", 2)))
    by_stream: dict[int, set[tuple[int, ...]]] = {}
    for rank in range(mesh.size):
        at = mesh.coordinates(rank)
        same = tuple(at[axis] for axis in ("data", "sharded", "pipeline"))
        by_stream.setdefault(mesh.stream(rank), set()).add(same)
    assert len(by_stream) == 12
    assert all(len(found) == 1 for found in by_stream.values())
    alone = Mesh((("data", 4),))
    assert [alone.stream(rank) for rank in range(4)] == [alone.replica(rank) for rank in range(4)]


def test_every_stage_begins_with_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(engine, "seed_all", seeds.append)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    work = Workload(model=model, data=(np.ones((4, 3)), np.arange(4) % 2), batch_size=4)
    for strategy, different in (("data=2,pipeline=2", 4), ("pipeline=2,tensor=2", 2)):
        seeds.clear()
        run_on_threads(work, strategy, 1, accumulate=1)
        assert len(seeds) == 4
        assert len(set(seeds)) == different


@pytest.mark.parametrize(
    ("old", "new", "whose"),
    [
        ("serial", "pipeline=2", {0: 0}),
        ("pipeline=2", "serial", {0: 0}),
        ("pipeline=2", "pipeline=2", {0: 0, 1: 1}),
        ("pipeline=2", "pipeline=3", {0: 0, 1: 1}),
        ("pipeline=2", "pipeline=2,tensor=2", {0: 0, 1: 0, 2: 1, 3: 1}),
        ("data=2", "data=2,pipeline=2", {0: 0, 2: 1}),
        ("data=2", "pipeline=2", {}),
    ],
)
def test_no_two_stages_go_on_from_the_generators_of_one(
    old: str, new: str, whose: dict[int, int]
) -> None:
    assert draws_on(parse(old), parse(new)) == whose
