"""Checkpoints without processes: pieces, files, manifests, and everything that can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_threads import ThreadRun, run_on_threads
from test_resuming import workload
from torch import nn
from torch.optim import Adam

from workbench.checkpoint import folder, manifest
from workbench.checkpoint.fitting import facts
from workbench.checkpoint.loading import needed
from workbench.checkpoint.manifest import Damaged, Manifest
from workbench.checkpoint.parts import read_shares, write_part, write_plain
from workbench.checkpoint.pieces import common, held, shape_of, volume, whole
from workbench.checkpoint.saving import manifest_of, part_name
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


def save_threads(run: ThreadRun, work: Workload, target: Path) -> None:
    """Save a run whose ranks were threads of this process, as workers save theirs."""
    kept: dict[str, dict[int, Any]] = {}
    for rank, outcome in enumerate(run.outcomes):
        for name, value in outcome.kept.items():
            kept.setdefault(name, {})[rank] = value
    ended = SimpleNamespace(
        plan=run.plan, work=work, kept=kept, threads=1, first_step=0, step=len(run.losses)
    )
    made = manifest_of(ended)  # type: ignore[arg-type]
    with folder.beside(target, 0) as new:
        token = folder.probe(new)
        files = {
            part_name(rank): write_part(str(new), token, part_name(rank), "here", outlet.kept)
            for rank, outlet in enumerate(run.outlets)
            if outlet.kept
        }
        folder.seal(new, made(facts(work).said, files), {})
        folder.commit(new, target)


def read_all(place: Path, planned: Any) -> list[dict[str, Any]]:
    """Return what each rank of a plan reads; the first verifies all files."""
    content = manifest.read(place)
    return [
        read_shares(str(place), "here", content.files if rank == 0 else {}, wanted)
        for rank, wanted in enumerate(needed(content, planned))
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


@pytest.fixture(scope="module")
def good(ended: dict[str, ThreadRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("good") / "it"
    save_threads(ended["tensor=2"], workload(), place)
    return place


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_byte_that_is_changed_anywhere_is_found(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(p.name for p in good.iterdir())))
    content = bytearray((good / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    bad = tmp_path_factory.mktemp("bad") / "it"
    shutil.copytree(good, bad)
    (bad / name).write_bytes(content)
    with pytest.raises(Damaged) as caught:
        read_all(bad, plan(workload(), "serial"))
    assert name in str(caught.value) or manifest.NAME in str(caught.value)
    shutil.rmtree(bad)


def _rewrite(place: Path, **changes: Any) -> None:
    """Change the manifest of a checkpoint and seal it again, as a forger would."""
    content = json.loads((place / manifest.NAME).read_text()) | changes
    data = json.dumps(content).encode()
    (place / manifest.NAME).write_bytes(data)
    (place / manifest.SEAL).write_bytes(manifest.seal_of(data))


def _traversal(place: Path) -> None:
    files = json.loads((place / manifest.NAME).read_text())["files"]
    _rewrite(place, files={"../x.safetensors": files["part-00000.safetensors"]})


def _truncated(place: Path) -> None:
    os.truncate(place / "part-00001.safetensors", 100)


def _linked(place: Path) -> None:
    part = place / "part-00000.safetensors"
    part.rename(place.parent / "elsewhere.safetensors")
    part.symlink_to(place.parent / "elsewhere.safetensors")


def _swapped(place: Path) -> None:
    one, other = place / "part-00000.safetensors", place / "part-00001.safetensors"
    one.rename(place / "x")
    other.rename(one)
    (place / "x").rename(other)


def _overlapping(place: Path) -> None:
    arrays = json.loads((place / manifest.NAME).read_text())["arrays"]
    array = arrays["parameter:0.weight"]
    array["parts"] = array["parts"][:1]
    _rewrite(place, arrays=arrays)


def _foreign(place: Path) -> None:
    (place / manifest.NAME).unlink()
    (place / ".metadata").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (shutil.rmtree, "nothing is there"),
        (_truncated, "part-00001.safetensors has 100 bytes and should have"),
        (lambda p: (p / "part-00000.safetensors").unlink(), "not complete: .*part-00000"),
        (lambda p: (p / manifest.SEAL).unlink(), "manifest.json does not have the SHA-256"),
        (lambda p: _rewrite(p, version=2), "is of version 2, and this workbench reads"),
        (lambda p: _rewrite(p, format="other"), "the format of its manifest.json is another"),
        (lambda p: _rewrite(p, step=-1), "does not make sense: -1 is no count"),
        (lambda p: _rewrite(p, arrays=[]), "does not make sense"),
        (_traversal, "'../x.safetensors' is no name of a part"),
        (_linked, "is a link"),
        (_swapped, "should have"),
        (_overlapping, "the parts of parameter:0.weight are not the whole of it"),
        (_foreign, "it is one of torch.distributed.checkpoint, which holds pickled code"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name_and_the_newest_valid_one_offered(
    good: Path, tmp_path: Path, harm: Any, says: str
) -> None:
    for name in ("broken", "older", "newer", "bad"):
        shutil.copytree(good, tmp_path / name)
    for age, name in enumerate(("older", "newer", "broken")):
        os.utime(tmp_path / name / manifest.NAME, (age, age))
    harm(tmp_path / "bad")
    (tmp_path / "broken" / "part-00000.safetensors").unlink()
    with pytest.raises(Damaged, match=says):
        read_all(tmp_path / "bad", plan(workload(), "serial"))
    assert f"{str(tmp_path / 'newer')!r}, of step 2" in folder.offered(tmp_path / "bad")


def test_nothing_is_offered_where_nothing_is_valid(tmp_path: Path) -> None:
    assert folder.offered(tmp_path / "it") == ""


def test_what_is_no_checkpoint_is_not_replaced(good: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match=r"holds 'notes.txt', which is no part of a checkpoint"):
        folder.check_free(tmp_path)
    with pytest.raises(PlanError, match="is a file, and a checkpoint is a folder"):
        folder.check_free(tmp_path / "notes.txt")
    folder.check_free(good)
    folder.check_free(tmp_path / "new")


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(PlanError, match="does not fit on the disk"),
        folder.beside(tmp_path / "it", 1 << 60),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PlanError, match="cannot be written"),
        folder.beside(tmp_path / "file" / "it", 0),
    ):
        pass
    for path in ("", 3, None):
        with pytest.raises(PlanError, match="takes a path"):
            folder.target_of(path, "save")


def test_a_file_system_that_cannot_exchange_names_keeps_the_old_one_until_the_new_is_there(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: str, other: str) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("workbench.comm.kernel.exchange", refuse)
    target = tmp_path / "it"
    shutil.copytree(good, target)
    with folder.beside(target, 0) as made:
        shutil.copytree(good, made, dirs_exist_ok=True)
        (made / "part-00009.safetensors").touch()
        folder.commit(made, target)
    assert (target / "part-00009.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


KILLED = """
import os, shutil, sys
from pathlib import Path
from workbench.checkpoint import folder, manifest, parts
good, target, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
count = 0
def counted(function):
    def call(*args, **named):
        global count
        count += 1
        if count > left:
            os._exit(9)
        return function(*args, **named)
    return call
for name in ("mkdir", "fsync", "rename", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
folder.kernel.exchange = counted(folder.kernel.exchange)
import numpy as np
content = manifest.read(good)
with folder.beside(target, 0) as made:
    token = folder.probe(made)
    for name in content.files:
        shutil.copy(good / name, made / name)
        parts.sync(str(made / name))
    folder.seal(made, content, {})
    folder.commit(made, target)
print("ended", count)
"""


@pytest.mark.timeout(60)
def test_a_save_that_is_killed_at_any_moment_leaves_a_valid_checkpoint(
    good: Path, tmp_path: Path
) -> None:
    target = tmp_path / "it"
    shutil.copytree(good, target)

    def save(left: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(good), str(target), str(left)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = 0
    for left in range(20):
        process = save(left)
        text, _ = process.communicate(timeout=30)
        manifest.read(target)
        killed += process.returncode == 9
        if "ended" in text:
            break
    assert killed >= 6
    assert [path.name for path in tmp_path.iterdir()] == ["it"]  # the last has cleaned up


def test_a_folder_that_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    with folder.beside(tmp_path / "it", 0) as one, folder.beside(tmp_path / "it", 0) as other:
        assert one != other
        assert one.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_says_again_what_it_has_been_told(good: Path, tmp_path: Path) -> None:
    content = manifest.read(good)
    assert isinstance(content, Manifest)
    assert content.step == 2
    assert content.strategy == "tensor=2"
    assert content.arrays["parameter:0.weight"].parts == {
        "part-00000.safetensors": (((0, 6),), ((0, 6),)),
        "part-00001.safetensors": (((6, 12),), ((0, 6),)),
    }
    again, _ = manifest.write(replace(content, step=7), {})
    assert json.loads(again)["step"] == 7


def test_a_worker_that_does_not_see_the_folder_says_what_is_needed(tmp_path: Path) -> None:
    for call in (
        lambda: write_part(str(tmp_path), "token", part_name(0), "tls://there", {}),
        lambda: write_plain(str(tmp_path / "it"), "token", "tls://there", {}, {}),
        lambda: read_shares(str(tmp_path), "tls://there", {}, []),
    ):
        with pytest.raises(PlanError, match=r"tls://there does not see .* that they and you share"):
            call()
