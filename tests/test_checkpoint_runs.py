"""Checkpoints of real runs: they go on as if nothing had happened, or are refused in a sentence."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_resuming import assert_same, trained, workload
from torch import Tensor, nn
from torch.nn import functional

import workbench as wb
from workbench.cli import commands
from workbench.cluster.lab import Lab
from workbench.run import Run
from workbench.workload import Workload

pytestmark = pytest.mark.timeout(120)


class Drawing(nn.Module):
    """Draws from every generator there is, by itself and through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.dropout(self.first(x)), 0.2)
        if not x.is_meta:
            x = x * (1 + 0.1 * random.random() + 0.1 * float(np.random.standard_normal()))
        return self.last(x)


class Decaying(torch.optim.Adam):
    """Counts its steps in a plain number, and changes its own learning rate by that."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["seen"] = state.get("seen", 0) + 1
            group["lr"] *= 1 - 0.1 / state["seen"]


class Remembering(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("past", []).append(1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def cut(one_lab: Lab, folder: Path) -> Run:
    return trained(one_lab, folder, "tensor=2", 3)


@pytest.fixture(scope="module")
def saved(cut: Run, folder: Path) -> Path:
    return wb.save(cut, folder / "saved")


def drawing(**changes: Any) -> Workload:
    torch.manual_seed(0)
    source = np.random.default_rng(0)
    values: dict[str, Any] = {
        "model": Drawing(),
        "data": (source.normal(size=(20, 6)), source.normal(size=(20, 3))),
        "loss": nn.MSELoss(),
        "optimizer": partial(Decaying, lr=0.01),
        "batch_size": 6,
    }
    return Workload(**values | changes)


@pytest.mark.parametrize("strategy", ["serial", "data=2"])
def test_a_run_goes_on_bit_by_bit_under_the_same_strategy(
    lab: Lab, folder: Path, strategy: str
) -> None:
    whole = trained(lab, folder, strategy, 4, work=drawing())
    begun = trained(lab, folder, strategy, 2, work=drawing())
    wb.save(begun, folder / "begun")
    del begun
    loaded = wb.load(folder / "begun", work=drawing())
    assert (loaded.step, loaded.strategy) == (2, strategy)
    second = trained(lab, folder, strategy, 2, work=drawing(), start=loaded)
    assert [row["step"] for row in second.history] == [2, 3]
    assert [row["loss"] for row in second.history] == [row["loss"] for row in whole.history[2:]]
    for kind in ("parameter", "optimizer", "number", "group"):
        ours, theirs = second.state(kind), whole.state(kind)
        assert ours.keys() == theirs.keys()
        assert ours
        for name, array in ours.items():
            np.testing.assert_array_equal(array.compute(), theirs[name].compute(), name)


def test_a_checkpoint_goes_on_under_other_strategies_exactly(
    lab: Lab, folder: Path, cut: Run, saved: Path
) -> None:
    whole = trained(lab, folder, "serial", 6, accumulate=1)
    run: Any = cut
    for strategy, options in (
        ("pipeline=2", {}),
        ("sharded=2", {"stage": 3}),
        ("serial", {}),
    ):
        path = wb.save(run, folder / "chain")
        loaded = wb.load(path, strategy, work=workload(), **options)
        assert_same(loaded, run)  # type: ignore[arg-type]
        run = trained(lab, folder, strategy, 1, start=loaded, **loaded.options)
    assert [row["step"] for row in run.history] == [5]
    assert_same(run, whole)
    assert run.history[0]["loss"] == pytest.approx(whole.history[5]["loss"], rel=1e-9)


def test_what_is_loaded_is_scored_and_saved_again_like_a_run(
    lab: Lab, folder: Path, cut: Run, saved: Path
) -> None:
    loaded = wb.load(saved, "data=2", work=workload())
    assert repr(loaded) == f"<SavedRun custom data=2, 1 thread: step 3, from {saved}>"
    data = workload().data
    assert wb.evaluate(loaded, data).loss == pytest.approx(wb.evaluate(cut, data).loss, rel=1e-12)  # type: ignore[arg-type]
    again = wb.load(wb.save(loaded, folder / "again"), work=workload())
    assert_same(again, cut)  # type: ignore[arg-type]


def test_a_workload_of_the_catalogue_is_found_again_with_its_changes(
    lab: Lab, folder: Path
) -> None:
    work = wb.workload("digits-cnn", batch_size=256, seed=3)
    run = trained(lab, folder, "data=2", 1, work=work)
    path = wb.save(run, folder / "digits")
    loaded = wb.load(path, strategy="serial")
    assert (loaded.work.name, loaded.work.batch_size, loaded.work.seed) == ("digits-cnn", 256, 3)
    changed = work.with_(optimizer=torch.optim.Adagrad)
    path = wb.save(trained(lab, folder, "data=2", 1, work=changed), path)
    with pytest.raises(wb.PlanError, match=r"another optimizer .*give the workload"):
        wb.load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 5}, "batch_size is 5 here and 6 there; use batch_size=6"),
        ({"dtype": "float32"}, "dtype is 'float32' here and 'float64' there"),
        ({"optimizer": "sgd"}, "optimizer is 'SGD' here and 'Adam' there"),
        (
            {"model": nn.Sequential(nn.Linear(6, 3))},
            r"parameter '0.weight' has the shape \(12, 6\) in it and \(3, 6\) in the model, "
            r"the first of 16 that do not fit",
        ),
    ],
)
def test_a_checkpoint_of_another_workload_is_refused(
    lab: Lab, saved: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(wb.PlanError, match=says):
        wb.load(saved, work=workload(**changes))


def test_what_cannot_be_loaded_or_saved_is_refused(lab: Lab, folder: Path, saved: Path) -> None:
    with pytest.raises(wb.PlanError, match="holds no code and no data; give the workload"):
        wb.load(saved)
    with pytest.raises(wb.PlanError, match=r"nothing is there\. The newest valid one beside it is"):
        wb.load(folder / "nowhere", work=workload())
    with pytest.raises(wb.PlanError, match="is not a strategy"):
        wb.load(saved, "magic=2", work=workload())
    remembering = workload(optimizer="sgd").with_(optimizer=partial(Remembering, lr=0.01))
    run = trained(lab, folder, "serial", 1, work=remembering)
    with pytest.raises(wb.PlanError, match=r"its 'past' of parameter .* is neither an array"):
        wb.save(run, folder / "past")
    with pytest.raises(wb.PlanError, match="start= takes the state of the optimizer along"):
        trained(lab, folder, "serial", 1, work=remembering, start=run)
    going = wb.run(workload(), "serial", steps=100_000, folder=folder, lab=lab)
    try:
        with pytest.raises(wb.RunError, match="Wait for its end"):
            wb.save(going, folder / "going")
    finally:
        going.stop()
        going.wait(30)


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[None]:
    """No worker can write a file of more than 4 KiB."""

    def limit(bytes_: int) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, most))

    lab.client.run(limit, 4096)
    yield
    lab.client.run(limit, resource.RLIM_INFINITY)


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_is_full_leaves_the_one_before_as_it_was(
    lab: Lab, cut: Run, saved: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(wb.RunError, match="what was there before is untouched"):
        wb.save(cut, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    for name in ("new", "new.safetensors"):
        with pytest.raises(wb.RunError, match=r"could not be written: .*nothing is left of it"):
            wb.save(cut, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in saved.parent.iterdir() if "saving" in path.name]


def test_a_part_that_was_changed_is_named_by_the_worker_that_finds_it(
    lab: Lab, folder: Path, cut: Run
) -> None:
    path = wb.save(cut, folder / "changed")
    part = path / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(wb.PlanError, match=r"part-00001.safetensors has the SHA-256 .* newest"):
        wb.load(path, "data=2", work=workload())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.ones(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)) * self.scale)


def tied(**changes: Any) -> Workload:
    source = np.random.default_rng(0)
    data = source.normal(size=(8, 6)), source.normal(size=(8, 6))
    return Workload(
        **{"model": Tied, "data": data, "loss": nn.MSELoss(), "batch_size": 4} | changes
    )


def test_weights_alone_are_a_plain_state_dict(lab: Lab, folder: Path) -> None:
    run = trained(lab, folder, "tensor=2", 2, work=tied())
    path = wb.save(run, folder / "weights.safetensors")
    net = Tied()
    net.load_state_dict(load_file(path))
    assert int(net.norm.num_batches_tracked) == 2
    np.testing.assert_array_equal(
        net.first.weight.detach().numpy(), run.parameters["first.weight"].compute()
    )
    state = net.state_dict()
    del state["last.weight"]  # as files have it that leave tied weights out
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "w.pth")
    for name in ("weights.safetensors", "w.pth"):
        loaded = wb.load(folder / name, "data=2", work=tied(dtype="float64", batch_size=2))
        array = loaded.parameters["first.weight"].compute()
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, net.first.weight.detach().double().numpy())
    more = trained(lab, folder, "data=2", 1, work=loaded.work, start=loaded)
    assert [row["step"] for row in more.history] == [0]


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/workbench-bomb",)


def test_weights_that_do_not_fit_or_hold_code_are_refused(lab: Lab, tmp_path: Path) -> None:
    def refused(name: str, says: str) -> None:
        with pytest.raises(wb.PlanError, match=says):
            wb.load(tmp_path / name, work=tied())

    torch.save({"first.weight": Bomb()}, tmp_path / "bomb.pt")
    refused("bomb.pt", "could execute code, so it is not read")
    assert not Path("/tmp/workbench-bomb").exists()
    (tmp_path / "noise.pt").write_bytes(b"noise")
    refused("noise.pt", "noise.pt (holds more than arrays|cannot be read as weights)")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    refused("noise.safetensors", "cannot be read as weights")
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    refused("list.pt", "holds no state dict")
    save_file(
        {"first.weight": torch.ones(6, 5), "other": torch.ones(1)}, tmp_path / "o.safetensors"
    )
    refused("o.safetensors", r"'first.weight' has the shape \(6, 5\) .* the first of \d+ that")
    refused("missing.safetensors", "nothing is there")
    with pytest.raises(wb.PlanError, match="give the workload"):
        wb.load(tmp_path / "o.safetensors")


def test_the_command_saves_and_goes_on(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = importlib.import_module("workbench.cluster.starting")
    monkeypatch.setattr(starting, "start", lambda **asked: nullcontext(lab))
    monkeypatch.chdir(tmp_path)

    def figures(*arguments: str) -> dict[str, Any]:
        answer = CliRunner().invoke(commands, ["run", "digits-cnn", *arguments, "--json"])
        assert answer.exit_code == 0, answer.output
        return json.loads(answer.stdout)

    made = figures("--strategy", "data=2", "--steps", "2", "--save", "it")
    assert made["saved"] == str(tmp_path / "it")
    gone_on = figures("--from", "it", "--steps", "1", "--save", "it.safetensors")
    assert (gone_on["strategy"], gone_on["first_step"]) == ("data=2", 2)
    begun = figures("--from", "it.safetensors", "--steps", "1")
    assert (begun["strategy"], begun["first_step"], begun["saved"]) == ("serial", 0, None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    for arguments, says in (
        (("--save", "mine"), "which is no part of a checkpoint"),
        (("--save", "it.pt"), "give 'it.safetensors'"),
        (("--from", "mine"), "it has no manifest.json. The newest valid one beside it is"),
        (("--from", "it", "--batch", "32"), "use batch_size=128"),
    ):
        answer = CliRunner().invoke(commands, ["run", "digits-cnn", *arguments])
        assert answer.exit_code != 0
        assert says in " ".join(answer.output.split())
