"""The folder of a checkpoint: nothing strange is replaced, and what is there is always whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rank_threads import run_on_threads
from saved_threads import save_threads
from test_resuming import workload

from workbench.checkpoint import folder, manifest
from workbench.errors import PlanError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("good") / "it"
    save_threads(run_on_threads(workload(), "tensor=2", 2), workload(), place)
    return place


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
