"""Strategies as pure functions: how they are written, what they cut, what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import PlanError
from workbench.mesh import Mesh, balanced
from workbench.plan import Array, Batch, Collective, Cut, Layer, LayerPlan, Plan, in_binary_units
from workbench.strategies import STRATEGIES
from workbench.strategies.data import BUCKET_BYTES, gradient_buckets
from workbench.strategies.notation import parse


def toy(batch: int = 8, **options: str) -> Plan:
    """A plan of one linear and one BatchNorm layer, 3 features."""
    weight, bias = Array("0.weight", (3, 5), 4), Array("0.bias", (3,), 4)
    scale = Array("1.weight", (3,), 4)
    layers = (
        Layer("0", "Linear", (batch, 5), (batch, 3), (weight, bias), forward_flops=30 * batch),
        Layer("1", "BatchNorm1d", (batch, 3), (batch, 3), (scale,), batch_statistics=True),
    )
    return Plan(
        "toy",
        Batch(batch, 20),
        tuple(LayerPlan(layer) for layer in layers),
        options=tuple(options.items()),
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_described_and_cuts_the_toy(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.axis == name
    assert strategy.title
    assert strategy.summary.endswith(".")
    plan = strategy.cut(toy(), 2)
    assert plan.strategy == f"{name}=2"
    assert plan.ranks == 2
    assert plan.notes
    assert f"under {name}=2, 2 ranks" in str(plan)


@pytest.mark.parametrize(
    ("text", "axes"),
    [("serial", ()), ("data=1", ()), ("data=2", (("data", 2),)), (" data = 3 ", (("data", 3),))],
)
def test_strategies_are_written_as_degrees_on_axes(text: str, axes: object) -> None:
    assert parse(text) == Mesh(axes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dta=2", "'dta' is not a strategy. There are: serial, data=N.* mean 'data'"),
        ("", "'' is not a strategy"),
        ("data", "write data=2"),
        ("data=0", "degree 0 on 'data'.*nearest is data=1"),
        ("data=-3", "degree -3 on 'data'.*nearest is data=1"),
        ("data=2.6", "degree 2.6.*nearest is data=3"),
        ("data=two", "degree two"),
        ("data=²", "degree ²"),
        ("data=2,data=2", "twice"),
        (2, "written as text"),
        (None, "written as text"),
    ],
)
def test_what_is_no_strategy_is_refused_in_a_sentence(text: object, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        parse(text)  # type: ignore[arg-type]


def test_more_replicas_than_samples_are_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"data=9 asks for 9 replicas, but a batch of 8.* data=8"):
        STRATEGIES["data"].cut(toy(8), 9)


def test_data_cuts_the_batch_and_nothing_else() -> None:
    plan = STRATEGIES["data"].cut(toy(), 2)
    for planned in plan.layers:
        assert planned.input == planned.output == (Cut(0, "data"),)
        assert planned.parameters == ()


def test_bytes_of_data_parallel_are_those_of_the_formulas() -> None:
    plan = STRATEGIES["data"].cut(toy(), 2)
    gradients = 4 * (15 + 3 + 3)
    statistics = 4 * (2 * 3 + 1) + 4 * (2 * 3)
    record = 8 * (3 + 3)
    assert plan.bytes_per_step == gradients + statistics + record
    assert plan.sent_bytes(0) == plan.sent_bytes(1) == plan.bytes_per_step
    local = STRATEGIES["data"].cut(toy(batch_norm="local"), 2)
    assert local.bytes_per_step == gradients + record
    assert toy().bytes_per_step == 0


@given(st.integers(0, 50), st.integers(1, 6), st.sampled_from([1, 2, 4, 8]))
def test_an_all_reduce_sends_twice_all_but_one_share_over_all_ranks(
    numel: int, degree: int, itemsize: int
) -> None:
    reduce = Collective("g", "all_reduce", "data", numel, itemsize, "backward")
    sent = [reduce.sent_bytes(degree, i) for i in range(degree)]
    assert sum(sent) == 2 * (degree - 1) * numel * itemsize
    scatter = Collective("g", "reduce_scatter", "data", numel, itemsize, "backward")
    for index in range(degree):
        start, stop = balanced(numel, degree, index)
        expected = (numel - (stop - start)) * itemsize if degree > 1 else 0
        assert scatter.sent_bytes(degree, index) == expected


@given(st.lists(st.tuples(st.integers(0, BUCKET_BYTES // 2), st.booleans()), max_size=12))
def test_buckets_hold_every_trainable_parameter_once(sizes: list[tuple[int, bool]]) -> None:
    arrays = tuple(Array(f"p{i}", (n,), 4, trainable) for i, (n, trainable) in enumerate(sizes))
    buckets = gradient_buckets(arrays)
    names = [array.name for bucket in buckets for array in bucket]
    assert names == [a.name for a in reversed(arrays) if a.trainable]
    assert all(len(b) == 1 or sum(a.nbytes for a in b) <= BUCKET_BYTES for b in buckets)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1536, "1.5 KiB"),
        (1_782_579, "1.7 MiB"),
        (2**30, "1.0 GiB"),
        (2**41, "2,048.0 GiB"),
    ],
)
def test_bytes_for_people(nbytes: int, text: str) -> None:
    assert in_binary_units(nbytes) == text
