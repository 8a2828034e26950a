"""A strategy of a user's own: registered, written by its name, planned, proved, refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import workbench as wb
from workbench import strategies
from workbench.errors import PlanError
from workbench.mesh import Mesh, shares
from workbench.plan import Collective, Cut, Plan
from workbench.strategies import OPTIONS, STRATEGIES, Strategy, register_strategy
from workbench.strategies.notation import parse
from workbench.ui import controls, form
from workbench.why import why

pytestmark = pytest.mark.timeout(60)


def cut(plan: Plan) -> Plan:
    """Split every linear layer in columns and gather what it makes."""
    degree, layers, collectives = plan.mesh.degree("columns"), [], []
    for planned in plan.layers:
        layer = planned.layer
        if layer.role == "linear" and layer.output_shape[-1] >= degree:
            own = shares(layer.output_shape[-1], degree)
            others = tuple(sum(own) - mine for mine in own)
            parameters = tuple((array.name, Cut(0, "columns")) for array in layer.parameters)
            planned = replace(planned, choice="filters", parameters=parameters)
            collectives += [
                Collective(
                    f"{layer.name}: {what}",
                    operation,
                    ("columns",),
                    max(numbers),
                    layer.itemsize,
                    phase,
                    shares=numbers,
                    per_sample=True,
                )
                for what, operation, numbers, phase in (
                    ("whole output", "all_gather", own, "forward"),
                    ("gradient of the whole output", "exchange", others, "backward"),
                )
            ]
        layers.append(planned)
    return plan.adding(layers=tuple(layers), collectives=collectives)


COLUMNS = Strategy(
    "columns", "own", "Columns", "Split in columns.", cut, options={"gather": ("always", "never")}
)


@pytest.fixture(autouse=True)
def _forgotten():
    """Forget afterwards what a test registers."""
    before = dict(STRATEGIES), dict(OPTIONS)
    yield
    for table, kept in zip((strategies._offered, strategies._options), before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def columns():
    return register_strategy(COLUMNS)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5))


@pytest.mark.parametrize(
    "strategy",
    ["columns=2", "columns=3", "data=2,columns=2", "columns=2,sharded=2", "columns=2,pipeline=2"],
)
def test_it_gives_the_serial_result_and_sends_what_it_declares(columns, strategy):
    proof = wb.verify(model(), torch.randn(7, 12), strategy=strategy)
    assert proof.same_result, proof
    assert proof.sent_bytes == proof.predicted_bytes


def test_what_it_leaves_undeclared_is_seen(columns):
    def forgetful(plan):
        done = cut(plan)
        return replace(done, collectives=done.collectives[::2])

    register_strategy(replace(COLUMNS, cut=forgetful))
    proof = wb.verify(model(), torch.randn(7, 12), strategy="columns=2")
    assert all(s > p for s, p in zip(proof.sent_bytes, proof.predicted_bytes, strict=True))


@pytest.mark.parametrize("other", ["tensor", "channel", "spatial"])
def test_with_another_axis_that_cuts_the_same_arrays_it_is_refused(columns, other):
    images = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 4))
    proof = wb.verify(images, torch.randn(2, 2, 8, 8), strategy=f"columns=2,{other}=2")
    assert f"by columns and by {other}, which is not offered" in proof.refusal
    assert "use columns=2 alone" in proof.refusal


def test_registered_again_it_replaces_the_one_before_and_its_plans(columns):
    work = wb.Workload(
        model=model, data=(torch.randn(8, 12), torch.zeros(8, dtype=torch.long)), batch_size=4
    )
    first = wb.plan(work, "columns=2")
    assert wb.plan(work, "columns=2") is first
    register_strategy(replace(COLUMNS, cut=lambda plan: plan, options={}))
    assert wb.plan(work, "columns=2").bytes_per_step != first.bytes_per_step
    with pytest.raises(PlanError, match="There is no option 'gather'"):
        wb.plan(work, "columns=2", gather="never")


def test_an_option_of_its_own_is_checked(columns):
    assert OPTIONS["gather"] == ("always", "never")
    with pytest.raises(PlanError, match="Option gather='now' is not one of its choices"):
        wb.verify(model(), torch.randn(2, 12), strategy="columns=2", gather="now")


def test_its_ranks_are_neighbours(columns):
    mesh = parse("columns=2,data=3,tensor=1")
    assert mesh == Mesh((("data", 3), ("columns", 2)))
    assert mesh.feature_axes == ("columns",)
    assert mesh.group(2, "columns") == (2, 3)


def test_the_panel_offers_it(columns):
    asked = form.request(None, {"strategy": "columns=2,data=2", "workers": 4})
    assert asked.strategy == "data=2,columns=2"
    shown = controls.Controls(asked, None, {})
    assert list(shown.axes)[-1] == "columns"
    assert shown.request().strategy == "data=2,columns=2"
    assert shown.options["gather"].options == ("always", "never")


def test_it_needs_no_advice_of_its_own(columns):
    row = {"ranks": 2, "threads": 1, "device": "cpu", "step_s": 1.0, "comm_share": 0.4}
    found = why({**row, "strategy": "columns=2"}, {**row, "ranks": 1, "comm_share": 0.0}, 2)
    assert found.sentence.endswith("Its strategy has no advice for that.")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (cut, "takes a Strategy; got function"),
        (replace(COLUMNS, axis="data"), "comes along and cannot be replaced.*'my_data'"),
        (replace(COLUMNS, axis="serial"), "a name of small letters, such as 'columns'"),
        (replace(COLUMNS, axis="two words"), "a name of small letters"),
        (replace(COLUMNS, axis="a=2"), "a name of small letters"),
        (replace(COLUMNS, options={"stage": ()}), "'stage' of 'columns' means.*'columns_stage'"),
    ],
)
def test_what_cannot_be_registered_is_refused(wrong, sentence):
    before = dict(STRATEGIES), dict(OPTIONS)
    with pytest.raises(PlanError, match=sentence):
        register_strategy(wrong)
    assert (dict(STRATEGIES), dict(OPTIONS)) == before


def test_a_cut_that_returns_nothing_is_named():
    register_strategy(replace(COLUMNS, cut=lambda plan: None))
    work = wb.Workload(model=model, data=(torch.zeros(4, 12), torch.zeros(4).long()), batch_size=4)
    with pytest.raises(PlanError, match=r"The cut of columns is to return a Plan, .*NoneType"):
        wb.plan(work, "columns=2")
