"""Strategies as pure functions: how they are written, what they cut, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import PlanError
from workbench.mesh import Mesh, balanced
from workbench.plan import Batch, Collective, Cut, LayerPlan, Plan, in_binary_units
from workbench.plan.stages import Stage
from workbench.strategies import STRATEGIES, pipeline, spatial
from workbench.strategies.agreement import BUCKET_BYTES, agree, gradient_buckets
from workbench.strategies.notation import parse
from workbench.traced import Array, Layer, Sums, Traced
from workbench.windows import Window


def toy(batch: int = 8, **options: str) -> Plan:
    """A plan of one convolution and one BatchNorm layer: 3 channels, images of 6 × 4."""
    weight, bias = Array("0.weight", (3, 5, 1, 1), 4), Array("0.bias", (3,), 4)
    scale = Array("1.weight", (3,), 4)
    image = Traced((batch, 5, 6, 4), ("", "", "dim2", "dim3"), gradient=False)
    made = Traced((batch, 3, 6, 4), ("", "out:0", "dim2", "dim3"))
    statistics = tuple(
        Sums(name, operation, ("dim2", "dim3"), numel, phase, over_batch=True)
        for name, operation, numel, phase in (
            ("mean and variance", "all_gather", 7, "forward"),
            ("their gradients", "all_reduce", 6, "backward"),
        )
    )
    conv = Layer(
        "0",
        "Conv2d",
        image.shape,
        made.shape,
        (weight, bias),
        forward_flops=30 * batch,
        arguments=(image,),
        results=(made,),
        windows=((2, Window(6, 6)), (3, Window(4, 4))),
        role="conv",
    )
    norm = Layer(
        "1",
        "BatchNorm2d",
        made.shape,
        made.shape,
        (scale,),
        batch_statistics=True,
        arguments=(made,),
        results=(replace(made, labels=("", "", "dim2", "dim3")),),
        sums=statistics,
        role="channelwise",
    )
    return Plan(
        "toy",
        Batch(batch, 20),
        tuple(LayerPlan(layer) for layer in (conv, norm)),
        options=tuple(options.items()),
        inputs=(image,),
        outputs=norm.results,
    )


def cut(plan: Plan, name: str, degree: int) -> Plan:
    plan = replace(plan, mesh=Mesh(((name, degree),)))
    if name == pipeline.AXIS:  # planning divides a model before this
        plan = replace(plan, stages=tuple(Stage(n, None, (n,), 1) for n in range(degree)))
    return agree(STRATEGIES[name].cut(spatial.declare(plan) if name == spatial.AXIS else plan))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_described_and_cuts_the_toy(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.axis == name
    assert strategy.title
    assert strategy.summary.endswith(".")
    plan = cut(toy(), name, 2)
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
    ("text", "mesh", "written"),
    [
        ("spatial=2x3", Mesh((("spatial", 6),), (2, 3)), "spatial=2x3"),
        ("spatial=4,data=2", Mesh((("data", 2), ("spatial", 4))), "data=2,spatial=4"),
        ("spatial=1x1", Mesh(), "serial"),
    ],
)
def test_the_ranks_of_an_axis_may_stand_on_a_grid(text: str, mesh: Mesh, written: str) -> None:
    assert parse(text) == mesh
    assert str(mesh) == written


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
        ("data=2x2", "degree 2x2 on 'data'"),
        ("spatial=2x0", "degree 0 on 'spatial'"),
        ("spatial=2xx2", "gives no degree for 'spatial'"),
        (2, "written as text"),
        (None, "written as text"),
    ],
)
def test_what_is_no_strategy_is_refused_in_a_sentence(text: object, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        parse(text)  # type: ignore[arg-type]


def test_more_replicas_than_samples_are_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"data=9 asks for 9 replicas, but a batch of 8.* data=8"):
        cut(toy(8), "data", 9)


def test_data_cuts_the_batch_and_nothing_else() -> None:
    plan = cut(toy(), "data", 2)
    for planned in plan.layers:
        assert planned.input == planned.output == (Cut(0, "data"),)
        assert planned.parameters == ()


def test_bytes_of_data_parallel_are_those_of_the_formulas() -> None:
    plan = cut(toy(), "data", 2)
    gradients = 4 * (15 + 3 + 3)
    statistics = 4 * (2 * 3 + 1) + 4 * (2 * 3)
    record = 8 * (3 + 3)
    assert plan.bytes_per_step == gradients + statistics + record
    assert plan.sent_bytes(0) == plan.sent_bytes(1) == plan.bytes_per_step
    local = cut(toy(batch_norm="local"), "data", 2)
    assert local.bytes_per_step == gradients + record
    assert toy().bytes_per_step == 0


@given(st.integers(0, 50), st.integers(1, 6), st.sampled_from([1, 2, 4, 8]))
def test_an_all_reduce_sends_twice_all_but_one_share_over_all_ranks(
    numel: int, degree: int, itemsize: int
) -> None:
    reduce = Collective("g", "all_reduce", ("data",), numel, itemsize, "backward")
    sent = [reduce.sent_bytes(degree, i) for i in range(degree)]
    assert sum(sent) == 2 * (degree - 1) * numel * itemsize
    scatter = Collective("g", "reduce_scatter", ("data",), numel, itemsize, "backward")
    for index in range(degree):
        start, stop = balanced(numel, degree, index)
        expected = (numel - (stop - start)) * itemsize if degree > 1 else 0
        assert scatter.sent_bytes(degree, index) == expected


@given(st.lists(st.tuples(st.integers(0, BUCKET_BYTES // 2), st.booleans()), max_size=12))
def test_buckets_hold_every_trainable_parameter_once(sizes: list[tuple[int, bool]]) -> None:
    arrays = tuple(Array(f"p{i}", (n,), 4, trainable) for i, (n, trainable) in enumerate(sizes))
    plan = replace(toy(), layers=(LayerPlan(Layer("p", "P", (), (), arrays)),))
    buckets = gradient_buckets(plan, ("data",))
    names = [array.name for _, members in buckets for array in members]
    assert names == [a.name for a in reversed(arrays) if a.trainable]
    for bucket, members in buckets:
        assert bucket.names == tuple(a.name for a in members)
        assert len(members) == 1 or sum(a.nbytes for a in members) <= BUCKET_BYTES


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
