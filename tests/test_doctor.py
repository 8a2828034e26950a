"""``workbench doctor``: it finds this machine good, and says what is wrong with others."""

from __future__ import annotations

import importlib
import json
import os
import re

import pytest
from click.testing import CliRunner, Result

from workbench import machine
from workbench.cli import checks, commands


def doctor(*options: str) -> Result:
    return CliRunner().invoke(commands, ["doctor", *options])


def test_doctor_finds_this_machine_good():
    answer = doctor("--json")
    document = json.loads(answer.stdout)
    assert answer.exit_code == 0, [c for c in document["checks"] if c["state"] == "wrong"]
    assert document["machine"]["cores"] == machine.cores()
    assert {"cores", "GPUs", "loopback", "torch"} <= {c["name"] for c in document["checks"]}


def test_doctor_fails_when_something_is_wrong(monkeypatch):
    def refused(name: str) -> int:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    answer = doctor()
    assert answer.exit_code == 1
    assert "Processes cannot share memory here: not permitted." in answer.stdout
    assert "1 thing to mend." in answer.stdout


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        (["click>=1"], ["good"]),
        (["click>=999"], ["wrong"]),
        (["no-such-package>=1"], ["wrong"]),
        (["no-such-package; extra == 'test'"], []),
    ],
)
def test_doctor_holds_packages_against_what_is_required(monkeypatch, requires, state):
    monkeypatch.setattr(checks.metadata, "requires", lambda name: requires)
    assert [check.state for check in checks.packages()] == state


def test_doctor_names_the_missing_extension(monkeypatch, tmp_path):
    paths = importlib.import_module("jupyter_core.paths")
    monkeypatch.setattr(paths, "jupyter_path", lambda name: [str(tmp_path)])
    assert {check.state for check in checks.extensions()} == {"wrong"}


WORDS = re.compile(r"\b(?:is|are|can|cannot|may|no|it|the|of|be|with|has|needed|good|wrong)\b")


def test_doctor_speaks_chinese_of_what_is_good_and_of_what_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_LANG", "zh")
    answer = doctor()
    assert "一切正常" in answer.stdout
    assert not WORDS.findall(answer.stdout)
    assert {c["name"] for c in json.loads(doctor("--json").stdout)["checks"]} >= {"cores", "GPUs"}

    paths = importlib.import_module("jupyter_core.paths")
    monkeypatch.setattr(paths, "jupyter_path", lambda name: [str(tmp_path)])
    monkeypatch.setattr(checks.metadata, "requires", lambda name: ["click>=999", "lacking>=1"])
    monkeypatch.setattr(machine, "cores", lambda *_: 1)
    monkeypatch.setattr(machine, "gpus", lambda *_: [])
    monkeypatch.setattr(machine, "gpu_visible", lambda *_: True)
    monkeypatch.setattr(machine, "memory_bytes", lambda *_: 2**20)
    monkeypatch.setattr(checks, "ARCHITECTURES", ())
    monkeypatch.setattr(checks, "memfd_create", lambda *_: -1)
    answer = doctor()
    assert answer.exit_code == 1
    assert answer.stdout.count("有误") == 6
    assert not WORDS.findall(answer.stdout.replace("Bad file descriptor", ""))
