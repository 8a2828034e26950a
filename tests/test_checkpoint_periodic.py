"""Checkpoints while a run goes on: which are there, what they hold, what stands in their way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from saved_threads import save_threads
from test_resuming import trained, workload

import workbench as wb
from workbench import snapshots
from workbench.checkpoint import folder
from workbench.checkpoint.periodic import Periodic
from workbench.cluster.context import RankContext, Recorder
from workbench.cluster.lab import Lab
from workbench.errors import PlanError
from workbench.pacing import Pace
from workbench.snapshots import Snapshots

pytestmark = pytest.mark.timeout(120)


def test_a_run_saves_itself_while_it_goes_on_and_keeps_the_newest(lab: Lab, tmp_path: Path) -> None:
    work, to = workload(), tmp_path / "checkpoints"
    (to / "step-00000004").mkdir(parents=True)
    (to / "step-00000004" / "notes.txt").write_text("mine")  # this one cannot be written
    run = trained(
        lab,
        tmp_path,
        "sharded=2",
        8,
        work=work,
        checkpoint_every=2,
        checkpoint_to=to,
        checkpoint_keep=2,
    )
    assert [path.name for path in run.checkpoints] == ["step-00000006", "step-00000008"]
    assert sorted(os.listdir(to)) == ["step-00000004", "step-00000006", "step-00000008"]
    assert run.checkpoint_error is None  # the newest could be written
    assert run.summary()["checkpoints"] == [str(path) for path in run.checkpoints]

    newest = wb.load(to, work=work)
    assert newest.step == 8
    middle = wb.load(to / "step-00000006", work=work)
    again = trained(lab, tmp_path, "sharded=2", 2, work=work, start=middle, **middle.options)
    for kind in ("parameter", "optimizer"):
        whole, *others = dask.compute(*(each.state(kind) for each in (run, newest, again)))
        for name, array in whole.items():
            for other in others:
                np.testing.assert_array_equal(array, other[name], name)


def test_a_run_goes_on_without_a_checkpoint_that_cannot_be_written(
    lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "to" / "step-00000003").mkdir(parents=True)
    (tmp_path / "to" / "step-00000003" / "notes.txt").write_text("mine")
    run = trained(lab, tmp_path, "serial", 3, checkpoint_every=3, checkpoint_to=tmp_path / "to")
    assert run.status == "done"
    assert run.checkpoints == ()
    assert "holds 'notes.txt', which is no part of a checkpoint" in str(run.checkpoint_error)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"checkpoint_every": 2}, "need checkpoint_every= and checkpoint_to="),
        ({"checkpoint_to": "x"}, "need checkpoint_every= and checkpoint_to="),
        ({"checkpoint_every": 0, "checkpoint_to": "x"}, "checkpoint_every=0 must be a whole"),
        (
            {"checkpoint_every": 2, "checkpoint_to": "x", "checkpoint_keep": 0},
            "checkpoint_keep=0 must be",
        ),
        ({"checkpoint_every": 2, "checkpoint_to": 3}, "checkpoint_to= takes a path"),
        (
            {"checkpoint_every": 2, "checkpoint_to": "w.safetensors"},
            "is to be a folder of checkpoints",
        ),
        ({"checkpoint_every": 2, "checkpoint_to": "file"}, "file is a file, and"),
        ({"checkpoint_every": 2, "checkpoint_to": "it"}, "it is a checkpoint itself"),
        (
            {"checkpoint_every": 3, "checkpoint_to": "x", "sync_every": 2},
            "use a multiple of sync_every=2",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("it").mkdir()
    Path("it", "manifest.json").touch()
    with pytest.raises(PlanError, match=says):
        wb.run(workload(), "data=2", steps=4, lab=lab, folder=tmp_path / "runs", **choices)
    assert not Path("runs").exists()


def test_the_newest_valid_one_is_loaded_and_older_ones_stay_until_there_are_newer(
    tmp_path: Path,
) -> None:
    run = run_on_threads(workload(), "serial", 2)
    save_threads(run, workload(), tmp_path / "step-00000010")
    for age, step in enumerate((40, 30, 20)):  # by age, not by step: a run may begin anew
        shutil.copytree(tmp_path / "step-00000010", tmp_path / folder.name_of(step))
        os.utime(tmp_path / folder.name_of(step) / "manifest.json", (age, age))
    (tmp_path / "step-00000010" / "part-00000.safetensors").unlink()
    shutil.copytree(tmp_path / "step-00000040", tmp_path / "mine")
    assert [path.name for path in folder.valid_in(tmp_path)] == [
        "step-00000020",
        "step-00000030",
        "step-00000040",
    ]
    assert folder.valid_in(tmp_path / "none") == []


class Told(Recorder):
    """An outlet that gives one command each time a rank looks."""

    def commands(self) -> list[str]:
        return [self.told.pop(0)] if self.told else []


def snapshotting(told: list[str]) -> tuple[Snapshots, list[str], Told]:
    comm: Any = None
    outlet = Told(told=told)
    context = RankContext(0, 1, comm, torch.device("cpu"), outlet=outlet)
    made: list[str] = []

    def keep(mark: str) -> dict[str, Any]:
        made.append(mark)
        return {"parameter:x": ((2,), "float32")}

    every = Snapshots(context, Pace(context), 2)
    for step in (2, 4):
        every.make(step, keep)
    return every, made, outlet


def test_a_rank_waits_for_the_checkpoint_before_the_next_one_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "LOOK_EVERY_S", 0.0)
    every, made, outlet = snapshotting(["pause", "written 2", "resume"])
    assert made == ["2@", "4@"]
    assert outlet.told == ["resume"]  # it went on at once
    assert [data for _, data in outlet.messages] == [
        {"step": step, "kept": {"parameter:x": ((2,), "float32")}} for step in (2, 4)
    ]
    assert [every.due(step) for step in (1, 2, 3, 4)] == [False, True, False, True]
    assert snapshotting(["stop"])[1] == ["2@"]
    monkeypatch.setattr(snapshots, "WRITE_LIMIT_S", 0.0)
    assert snapshotting([])[1] == ["2@"]  # the message got lost


def test_a_checkpoint_waits_for_the_word_of_all_ranks(tmp_path: Path) -> None:
    periodic = Periodic(tmp_path, 2, 3, wb.plan(workload(), "data=2"))
    run: Any = type("Run", (), {"plan": wb.plan(workload(), "data=2")})()
    periodic.receive(run, 0, {"step": 2, "kept": {}}, lambda command: None)
    periodic.receive(run, 0, {"step": 4, "kept": {}}, lambda command: None)
    assert periodic._thread is None
    assert set(periodic._parts) == {2, 4}
