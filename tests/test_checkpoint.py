"""Checkpoints of ranks as threads: saved under one strategy, read under every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import ThreadRun, run_on_threads
from saved_threads import read_all, save_threads
from test_resuming import workload
from torch import nn
from torch.optim import Adam

from workbench.checkpoint import manifest
from workbench.checkpoint.parts import write_part, write_plain
from workbench.checkpoint.pieces import common, held, shape_of, volume, whole
from workbench.checkpoint.reading import read_shares
from workbench.checkpoint.saving import part_name
from workbench.errors import PlanError
from workbench.planning import plan
from workbench.workload import Workload

CUTS: list[tuple[str, dict[str, Any]]] = [
    ("serial", {}),
    ("data=3", {}),
    ("tensor=2", {}),
    ("sharded=3", {"stage": 3}),
    ("sharded=2", {"stage": 1}),
    ("pipeline=2", {"accumulate": 2}),
    ("sharded=2,tensor=2", {"stage": 3}),
]


@pytest.fixture(scope="module")
def ended() -> dict[str, ThreadRun]:
    return {
        strategy: run_on_threads(workload(), strategy, 2, **options) for strategy, options in CUTS
    }


@pytest.mark.parametrize("saved", [strategy for strategy, _ in CUTS])
def test_what_is_saved_under_one_strategy_is_loaded_under_every_other(
    ended: dict[str, ThreadRun], saved: str, tmp_path: Path
) -> None:
    run = ended[saved]
    save_threads(run, workload(), tmp_path / "it")
    for strategy, options in CUTS:
        planned = plan(workload(), strategy, **options)
        shares = read_all(tmp_path / "it", planned)
        names = {name for share in shares for name in share if not name.startswith("random:")}
        assert names == set(run.state)
        for rank, share in enumerate(shares):
            for name, array in share.items():
                if name.startswith("random:"):
                    continue
                expected = run.state[name]
                for dim, runs in enumerate(held(planned, name, expected.shape, rank)):
                    index = np.concatenate([np.arange(*each) for each in runs])
                    expected = expected.take(index, axis=dim)
                np.testing.assert_array_equal(array, expected, err_msg=f"{strategy} {name}")


def test_every_rank_goes_on_with_its_own_generators(
    ended: dict[str, ThreadRun], tmp_path: Path
) -> None:
    save_threads(ended["data=3"], workload(), tmp_path / "it")
    same = read_all(tmp_path / "it", plan(workload(), "data=3"))
    for rank, share in enumerate(same):
        for name in ("torch", "numpy", "python"):
            key = f"random:{rank}:{name}"
            np.testing.assert_array_equal(share[key], ended["data=3"].outlets[rank].kept[key])
    other = read_all(tmp_path / "it", plan(workload(), "data=2"))
    assert not [name for share in other for name in share if name.startswith("random:")]


def test_a_dim_that_was_flattened_is_put_together_from_slices(tmp_path: Path) -> None:
    def convolutions() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4 * 3, 4))

    source = np.random.default_rng(0)
    work = Workload(
        model=convolutions,
        data=(source.normal(size=(8, 1, 6, 5)), np.arange(8) % 4),
        optimizer=Adam,
        batch_size=4,
        dtype="float64",
    )
    run = run_on_threads(work, "channel=2", 2)
    save_threads(run, work, tmp_path / "it")
    stored = manifest.read(tmp_path / "it").arrays["parameter:3.weight"]
    assert stored.shape == (4, 60)
    for strategy in ("serial", "tensor=3", "channel=3", "sharded=2"):
        planned = plan(work, strategy)
        for rank, share in enumerate(read_all(tmp_path / "it", planned)):
            for name in ("parameter:3.weight", "optimizer:exp_avg:3.weight"):
                if name in share:
                    piece = held(planned, name, (4, 60), rank)
                    rows, columns = (
                        np.concatenate([np.arange(*each) for each in runs]) for runs in piece
                    )
                    expected = run.state[name][np.ix_(rows, columns)]
                    np.testing.assert_array_equal(share[name], expected)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_that_tile_an_array_tile_every_part_of_it(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 30))

    def tiling() -> list[tuple[tuple[int, int], ...]]:
        owners = data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
        pieces = []
        for owner in range(3):
            runs: list[tuple[int, int]] = []
            for place, whose in enumerate(owners):
                if whose == owner:
                    if runs and runs[-1][1] == place:
                        runs[-1] = (runs[-1][0], place + 1)
                    else:
                        runs.append((place, place + 1))
            pieces.append(tuple(runs) or ((0, 0),))
        return pieces

    there, wanted = tiling(), tiling()
    array = np.arange(length)
    for want in wanted:
        found = np.full(shape_of((want,)), -1)
        copied = 0
        for have in there:
            part = np.concatenate([array[a:b] for a, b in have])
            copies = common((have,), (want,))
            for here, to, count in copies[0] if copies else ():
                found[to : to + count] = part[here : here + count]
            copied += volume(copies) if copies else 0
        assert copied == len(found)
        np.testing.assert_array_equal(found, np.concatenate([array[a:b] for a, b in want]))
    assert common(whole((length,)), whole((length,))) == (((0, 0, length),),)


def test_a_worker_that_does_not_see_the_folder_says_what_is_needed(tmp_path: Path) -> None:
    for call in (
        lambda: write_part(str(tmp_path), "token", part_name(0), "tls://there", {}),
        lambda: write_plain(str(tmp_path / "it"), "token", "tls://there", {}, {}),
        lambda: read_shares(str(tmp_path), "tls://there", {}, []),
    ):
        with pytest.raises(PlanError, match=r"tls://there does not see .* that they and you share"):
            call()
