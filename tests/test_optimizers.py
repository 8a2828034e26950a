"""Optimizers as users give them: classes, functions, instances with groups."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from workloads import X, make, net

from workbench.errors import PlanError
from workbench.workload import Workload

pytestmark = pytest.mark.usefixtures("in_this_thread")

# ---------------------------------------------------------------------------- optimizer

OPTIMIZERS = [
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
]


def updated(work: Workload, *, named: bool) -> list[torch.Tensor]:
    model = work.make_model()
    optimizer = work.make_optimizer(model.named_parameters() if named else model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.from_numpy(X)).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("named", [False, True])
def test_an_instance_is_made_again_with_its_options(kind, named):
    mine = net()
    instance = (
        kind(mine.parameters(), lr=0.03, weight_decay=0.1)
        if kind is not torch.optim.Rprop
        else kind(mine.parameters(), lr=0.03)
    )
    work = make(model=mine, optimizer=instance)
    options = {k: v for k, v in instance.param_groups[0].items() if k != "params"}
    remade = work.make_optimizer(work.make_model().parameters())
    assert type(remade) is kind
    assert {k: v for k, v in remade.param_groups[0].items() if k != "params"} == options
    got = updated(work, named=named)
    want = updated(
        make(
            model=mine,
            optimizer=partial(kind, lr=0.03)
            if kind is torch.optim.Rprop
            else partial(kind, lr=0.03, weight_decay=0.1),
        ),
        named=False,
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_groups_of_an_instance_are_kept_by_name():
    mine = net()
    instance = torch.optim.SGD(
        [{"params": [mine[2].weight], "lr": 0.5}, {"params": mine[0].parameters()}], lr=0.1
    )
    work = make(model=mine, optimizer=instance)
    model = work.make_model()
    remade = work.make_optimizer(model.named_parameters())
    groups = [(g["lr"], [id(p) for p in g["params"]]) for g in remade.param_groups]
    assert groups == [
        (0.5, [id(model[2].weight)]),
        (0.1, [id(model[0].weight), id(model[0].bias)]),
    ]
    with pytest.raises(TypeError, match="named_parameters"):
        work.make_optimizer(model.parameters())
    with pytest.raises(
        PlanError, match=r"such as '2\.weight', than this model's, such as 'weight'"
    ):
        work.make_optimizer(nn.Linear(3, 2).named_parameters())


def test_optimizers_that_cannot_be_used_are_refused():
    mine = net()
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(PlanError, match="other parameters than the model's"):
        make(model=mine, optimizer=other)
    with pytest.raises(PlanError, match="other parameters than the model's"):
        make(optimizer=other)
    with pytest.raises(PlanError, match="is a str"):
        make(optimizer="sgd")
    stepped = torch.optim.Adam(mine.parameters())
    mine(torch.from_numpy(X)).sum().backward()
    stepped.step()
    with pytest.raises(PlanError, match="has made steps already"):
        make(model=mine, optimizer=stepped)

    def made(optimizer):
        return make(optimizer=optimizer).make_optimizer(net().parameters())

    with pytest.raises(PlanError, match="was made over other parameters than those it was given"):
        made(lambda parameters: other)
    with pytest.raises(PlanError, match="made a int"):
        made(lambda parameters: 3)
    with pytest.raises(PlanError, match=r"could not be made from .*learning rate"):
        made(partial(torch.optim.SGD, lr=-1))
    with pytest.raises(PlanError, match="no trainable parameters"):
        make().make_optimizer([])
