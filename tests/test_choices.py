"""Stated choices: the nearest of what there is not, and a note on those that do nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from workbench.errors import PlanError
from workbench.planning import checked_options, plan
from workbench.strategies.choices import users, without_effect
from workbench.strategies.notation import parse
from workbench.ui import controls, form
from workbench.ui.language import speaking, translate
from workbench.workload import Workload

ENGLISH = "[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}"
WORDS = {"data", "pipeline", "sharded", "spatial", "tensor", "serial"}


def work() -> Workload:
    x = np.zeros((8, 4), np.float32)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    return Workload(model=net, data=(x, x), loss=nn.MSELoss(), batch_size=4)


@pytest.mark.parametrize(
    ("strategy", "options", "note"),
    [
        ("data=2", {"schedule": "gpipe"}, "data=2: schedule='gpipe' (for pipeline)"),
        ("data=2", {"recompute": "yes"}, "data=2: recompute='yes' (for pipeline)"),
        ("data=2", {"stage": 1}, "data=2: stage='1' (for sharded)"),
        ("data=2", {"split_at": "nope"}, "data=2: split_at='nope' (for pipeline)"),
        ("data=2", {"sequence": "split"}, "data=2: sequence='split' (for tensor)"),
        ("serial", {"recompute": True}, "serial: recompute='yes' (for pipeline)"),
        (
            "tensor=2",
            {"compression": "bf16", "fallback": "gather"},
            "tensor=2: compression='bf16' (for data), fallback='gather' (for spatial)",
        ),
        ("tensor=2", {"batch_norm": "local"}, "tensor=2: batch_norm='local' (for data or sharded)"),
        ("data=2", {"schedule": None, "stage": None, "chunks": ""}, ""),
        ("data=2", {"memory_limit": "1 GiB", "precision": "bf16", "compression": "bf16"}, ""),
        ("sharded=2", {"batch_norm": "local", "stage": 1}, ""),
        ("data=2,pipeline=2", {"schedule": "gpipe", "batch_norm": "local"}, ""),
        ("data=2", {"sync_every": 4}, ""),
    ],
)
def test_choices_that_do_nothing_are_told_in_one_note(
    strategy: str, options: dict[str, Any], note: str
) -> None:
    found = plan(work(), strategy, **options)
    said = [each for each in found.notes if each.startswith("no effect under")]
    assert said == ([f"no effect under {note}"] if note else [])
    assert (f"  no effect under {note}\n" in str(found)) == bool(note)
    with speaking("zh"):
        values = {*map(str, options.values()), *options, "yes"}
        for each in said:
            assert set(re.findall(r"[a-z_0-9]{3,}", translate(each))) <= values | WORDS


def test_a_choice_of_one_of_several_strategies_is_no_mistake() -> None:
    data, pipeline = parse("data=2"), parse("pipeline=2")
    assert without_effect({"schedule": "gpipe"}, data, pipeline) == ""
    assert without_effect({"schedule": "gpipe", "stage": "1"}, data, pipeline) == (
        "no effect under data=2: stage='1' (for sharded)"
    )
    assert users("memory_limit") == users("precision") == ()


def test_the_panel_tells_of_what_was_touched_and_does_nothing() -> None:
    asked = form.request(None, {"strategy": "data=2", "workers": 2})
    assert "no effect" not in form.hints(asked, 2)["strategy"]
    touched = replace(asked, options=(("schedule", "gpipe"),))
    assert form.hints(touched, 2)["strategy"].endswith(
        "Options with no effect under data=2: schedule='gpipe' (for pipeline)."
    )
    with speaking("zh"):
        assert (
            "在 data=2 下不起作用：schedule='gpipe'（用于 pipeline）"
            in (form.hints(touched, 2)["strategy"])
        )
    beside = replace(touched, also=("pipeline=2",))
    assert "no effect" not in form.hints(beside, 2)["strategy"]


def test_the_panel_has_those_choices_open_that_do_something() -> None:
    shown = controls.Controls(form.request(None, {"strategy": "sharded=2", "workers": 2}), None, {})
    shown.show({}, {}, "")
    shut = {name for name, field in shown.options.items() if field.disabled}
    assert {"schedule", "compression", "spatial_dims", "sequence"} <= shut
    assert shut.isdisjoint({"accumulate", "precision", "memory_limit", "stage", "batch_norm"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "1F1B"}, "Did you mean '1f1b'?"),
        ({"schedule": "zero-bubble"}, "Did you mean 'zb-h1'?"),
        ({"schedule": "ZB-H1"}, "Did you mean 'zb-h1'?"),
        ({"schedule": "g-pipe"}, "Did you mean 'gpipe'?"),
        ({"recompute": "true"}, "Did you mean 'yes'?"),
        ({"compression": "PowerSGD"}, "Did you mean 'powersgd'?"),
        ({"precision": "bfloat16"}, "Did you mean 'bf16'?"),
        ({"scedule": "gpipe"}, "Did you mean 'schedule'?"),
        ({"accumulation": 4}, "Did you mean 'accumulate'?"),
        ({"schedule": "round"}, "'zb-h1'."),
    ],
)
def test_the_nearest_choice_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as refused:
        checked_options(options)
    assert str(refused.value).endswith(says)
    with speaking("zh"):
        assert not re.search(
            "[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}", translate(str(refused.value))
        )


def test_true_and_false_are_yes_and_no() -> None:
    assert checked_options({"recompute": True}) == {"recompute": "yes"}
    assert checked_options({"recompute": False, "stage": None}) == {"recompute": "no"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pp=2", "pp is pipeline here: pipeline=2."),
        ("dp=4", "dp is data here: data=4."),
        ("ddp", "ddp is data here: data=2."),
        ("TP=2", "TP is tensor here: tensor=2."),
        ("dp=2,pp=3", "dp is data here: data=2,pipeline=3."),
        ("data=2,tp=3", "tp is tensor here: data=2,tensor=3."),
        ("fsdp=2", "fsdp is sharded here: sharded=2, and its stage is a choice: stage=1, 2 or 3."),
        ("zero=2", "zero is sharded here: sharded=2, and its stage is a choice: stage=1, 2 or 3."),
        ("sp=2", "sp is a choice of tensor here: tensor=2 with sequence='split'."),
        ("cp=2", "cp is a choice of tensor here: tensor=2 with sequence='split'."),
    ],
)
def test_the_words_of_the_field_are_told_in_those_of_here(text: str, says: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse(text)
    assert str(refused.value).endswith(says)
    with speaking("zh"):
        assert not re.search(
            "[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}", translate(str(refused.value))
        )
