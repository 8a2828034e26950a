"""Arrays from shares to whole and back: sums, gathering, and layers that run on whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.errors import RunError
from workbench.layers.carrier import Seat
from workbench.layers.gather import Together, Whole, all_reduce_sum, build_opaque, split_flat
from workbench.layers.groups import Groups
from workbench.layers.share import Share
from workbench.mesh import Mesh, balanced
from workbench.plan import Batch, Cut, CutLabel, LayerPlan, Plan
from workbench.traced import Flat, Layer, Traced
from workbench.verify import verify


def plan_of(grid: tuple[int, ...], *labels: str) -> Plan:
    """Return a plan that cuts the dims with these labels over the spatial axis."""
    ranks = torch.Size(grid).numel()
    cuts = tuple(CutLabel(label, "spatial", part) for part, label in enumerate(labels))
    mesh = Mesh((("spatial", ranks),), grid)
    return Plan("test", Batch(2, 2), (), mesh, cut_labels=cuts)


def slices(plan: Plan, array: Traced, rank: int) -> tuple[slice, ...]:
    return tuple(slice(*r) for r in plan.share(array.shape, plan.cuts_of(array), rank))


def on_ranks(plan: Plan, work: Callable[[Comm, Groups], Any]) -> list[Any]:
    return run_threads(plan.ranks, lambda comm: work(comm, Groups(comm, plan.mesh)), timeout_s=20.0)


def test_a_sum_over_ranks_has_the_sum_of_the_gradients() -> None:
    weights = torch.randn(3, 2, 5, dtype=torch.float64)
    x = torch.randn(3, 2, 5, dtype=torch.float64)

    def work(comm: Comm) -> tuple[Tensor, Tensor, int]:
        mine = x[comm.rank].clone().requires_grad_()
        total = all_reduce_sum(mine, comm, "there", "back")
        (total * weights[comm.rank]).sum().backward()
        assert mine.grad is not None
        return total.detach(), mine.grad, sum(comm.calls.values())

    for total, grad, calls in run_threads(3, work, timeout_s=20.0):
        assert torch.allclose(total, x.sum(0), atol=1e-14)
        assert torch.allclose(grad, weights.sum(0), atol=1e-14)
        assert calls == 2


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 7),
    columns=st.integers(1, 5),
    grid=st.sampled_from(((1,), (2,), (3,), (5,), (2, 2), (1, 3), (3, 2))),
)
def test_gathering_and_its_adjoint(rows: int, columns: int, grid: tuple[int, ...]) -> None:
    """Shares may be uneven or empty; every rank has another gradient of the whole."""
    array = Traced((2, 3, rows, columns), ("", "", "dim2", "dim3"))
    plan = plan_of(grid, *("dim2", "dim3")[: len(grid)])
    x = torch.randn(array.shape, dtype=torch.float64)
    weights = torch.randn(plan.ranks, *array.shape, dtype=torch.float64)

    def work(comm: Comm, groups: Groups) -> tuple[Tensor, Tensor, dict[str, int]]:
        mine = x[slices(plan, array, comm.rank)].clone().requires_grad_()
        gather = Whole(array.shape, plan.cuts_of(array), plan, groups, "there", "back")
        whole = gather(mine)
        (whole * weights[comm.rank]).sum().backward()
        assert mine.grad is not None
        return whole.detach(), mine.grad, dict(comm.sent_bytes)

    for rank, (whole, grad, sent) in enumerate(on_ranks(plan, work)):
        assert torch.equal(whole, x)
        own = slices(plan, array, rank)
        assert torch.allclose(grad, weights.sum(0)[own], atol=1e-13)
        numel, mine = x.numel(), x[own].numel()
        assert sent.get("all_gather", 0) == 8 * (plan.ranks - 1) * mine
        assert sent.get("exchange", 0) == 8 * (numel - mine) * (plan.ranks > 1)


def test_fewer_samples_than_planned_are_gathered_and_a_wrong_share_is_refused() -> None:
    array = Traced((4, 5), ("", "dim1"))
    plan = plan_of((2,), "dim1")

    def work(comm: Comm, groups: Groups) -> Tensor:
        gather = Whole(array.shape, plan.cuts_of(array), plan, groups, "there", "back")
        with pytest.raises(RunError, match=r"2 of 5 along dim 1|3 of 5 along dim 1"):
            gather(torch.ones(4, 4))
        return gather(torch.ones(1, (3, 2)[comm.rank]))

    assert all(whole.shape == (1, 5) for whole in on_ranks(plan, work))


@given(
    sizes=st.tuples(*(st.integers(1, 4) for _ in range(3))),
    place=st.integers(0, 2),
    ranks=st.integers(1, 5),
)
def test_the_shares_of_a_flattened_dim_are_those_of_its_parts(
    sizes: tuple[int, ...], place: int, ranks: int
) -> None:
    flat = Flat(tuple(("dim2" if i == place else "", n) for i, n in enumerate(sizes)))
    plan = plan_of((ranks,), "dim2")
    x = torch.randn(2, *sizes, 3)
    for rank in range(ranks):
        start, stop = balanced(sizes[place], ranks, rank)
        wanted = (
            x.narrow(1 + place, start, stop - start).reshape(2, -1, 3) if stop > start else None
        )
        mine = split_flat(x.reshape(2, -1, 3), 1, flat, plan, rank)
        assert mine.shape[1] == 0 if wanted is None else torch.equal(mine, wanted)


def test_sums_beside_a_dim_that_the_same_ranks_cut() -> None:
    """On a grid ranks that have other rows must not be added to each other."""
    plan = plan_of((2, 3), "dim1", "dim2")
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    array = Traced((2, 5, 4), ("", "dim1", "dim2"))
    cuts = plan.cuts_of(array)
    planned = LayerPlan(Layer("a", "A", (2, 5, 4), (2, 5, 4)), input=cuts)

    def work(comm: Comm, groups: Groups) -> None:
        seat = Seat("a", 0, (planned,), plan, groups, Share(rows=2))
        together = Together(seat, planned, (2,))
        own = slices(plan, array, comm.rank)
        mine = x[own]
        total = together.sum(mine.sum(2, keepdim=True), "there", "back")
        assert torch.allclose(total, x.sum(2, keepdim=True)[:, own[1]], atol=1e-13)
        few = mine.amax(2, keepdim=True) if mine.numel() else torch.full_like(total, -torch.inf)
        largest = together.largest(few, "largest")
        assert torch.equal(largest, x.amax(2, keepdim=True)[:, own[1]])
        assert together.count == 4

    on_ranks(plan, work)


class Named(nn.Module):
    """Takes and gives tensors in tuples, dicts and by keyword; mixes all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.float64))

    def forward(self, pair: tuple[Tensor, Any], *, extra: dict[str, Tensor]) -> dict[str, Any]:
        x, factor = pair
        turned = x.flip(-1).cumsum(-1) * self.weight * factor
        return {"all": [turned, extra["whole"] * turned.sum()], "note": "kept", "x": (x,)}


def test_a_layer_on_whole_arrays_takes_and_gives_nested_shares() -> None:
    torch.manual_seed(0)
    module = Named()
    plan = plan_of((3,), "dim1")
    cut, whole = Traced((2, 5), ("", "dim1")), Traced((2, 2), ("", ""))
    layer = Layer("a", "Named", (2, 5), (2, 5), arguments=(cut, whole), results=(cut, whole, cut))
    planned = LayerPlan(layer, input=(Cut(1, "spatial"),), choice="gather")
    x = torch.randn(2, 5, dtype=torch.float64)
    extra = torch.randn(2, 2, dtype=torch.float64)

    def run(forward: Callable[..., Any], x: Tensor) -> tuple[Any, Tensor, Tensor]:
        x = x.clone().requires_grad_()
        more = extra.clone().requires_grad_()
        out = forward((x, 2.0), extra={"whole": more})
        (out["all"][0].square().sum() + out["x"][0].pow(3).sum()).backward()
        assert x.grad is not None
        return out, x.grad, out["all"][1].detach()

    expected, gradient, beside = run(module, x)

    def work(comm: Comm, groups: Groups) -> None:
        seat = Seat("a", 0, (planned,), plan, groups, Share(rows=2))
        own = slice(*balanced(5, 3, comm.rank))
        out, grad, more = run(build_opaque(module, seat), x[:, own])
        assert out["note"] == "kept"
        assert isinstance(out["x"], tuple)
        assert torch.allclose(out["all"][0], expected["all"][0][:, own])
        assert torch.allclose(out["x"][0], x[:, own])
        assert torch.allclose(more, beside)
        assert torch.allclose(grad, gradient[:, own])

    on_ranks(plan, work)


class Sorted(nn.Module):
    """Needs all positions; has layers inside that know of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Dropout(0.3)
        )

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.inside(x.sort(-1).values), (x + y).flip(-1)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.middle = nn.BatchNorm2d(3), Sorted()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.middle(self.before(x), y=torch.tanh(x))
        return a * b


@pytest.mark.parametrize("strategy", ["spatial=2", "spatial=4", "spatial=2x2", "data=2,spatial=2"])
def test_a_layer_that_needs_the_whole_is_given_it_on_request(strategy: str) -> None:
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    refused = verify(Around(), x, strategy="spatial=2", spatial_dims=3)
    assert refused.refusal is not None
    dims: dict[str, Any] = {} if "x" in strategy else {"spatial_dims": 3}
    proof = verify(Around(), x, strategy=strategy, fallback="gather", **dims)
    assert proof.same_result, proof
    if "data" not in strategy:
        assert proof.sent_bytes == proof.predicted_bytes
