"""Checkpoints that are not what they should be: refused by name, and another is offered."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_threads import run_on_threads
from saved_threads import read_all, save_threads
from test_resuming import workload

from workbench.checkpoint import folder, manifest
from workbench.checkpoint.manifest import Damaged, Manifest
from workbench.planning import plan


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("good") / "it"
    save_threads(run_on_threads(workload(), "tensor=2", 2), workload(), place)
    return place


@given(st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
