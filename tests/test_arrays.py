"""Torch's operators on dask arrays give torch's numbers, however the dims are cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chunked import chunks, cut, difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench import PlanError, arrays

pytestmark = pytest.mark.usefixtures("in_this_thread", "_one_thread")
FEW = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
IMAGE = (2, 4, 11, 9)


@pytest.fixture(scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=source)


@FEW
@given(st.data())
def test_convolutions_are_exact(data):
    draw = data.draw
    dims = draw(st.integers(1, 3))
    sizes = tuple(draw(st.integers(4, 8)) for _ in range(dims))
    groups, transposed = draw(st.sampled_from([1, 2])), draw(st.booleans())
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    options = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, 2)) if transposed is False else 0,
        "dilation": 1 if max(kernel) == 3 and not transposed else draw(st.integers(1, 2)),
        "groups": groups,
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, options["stride"] - 1))
    x = numbers(2, 4, *sizes)
    weight = numbers(4, 3, *kernel) if transposed else numbers(6, 4 // groups, *kernel)
    bias = draw(st.sampled_from([None, numbers(3 * groups if transposed else 6)]))
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    lazy_weight: Any = weight
    if draw(st.booleans()):
        lazy_weight = cut(weight, draw(chunks(weight.shape)))
    lazy = getattr(arrays, name)(cut(x, draw(chunks(x.shape))), lazy_weight, bias, **options)
    assert difference(lazy, getattr(F, name)(x, weight, bias, **options)) < 1e-12


WINDOWS = {
    "max_pool2d": [(3, 2, 1), (2, 1, 0, 2), (3, 2, 1, 1, True)],
    "avg_pool2d": [(3, 2, 1), (3, 2, 1, True, False), (2, None, 0, False, True, 3)],
    "adaptive_avg_pool2d": [(1,), (3,), ((4, 5),)],
    "adaptive_max_pool2d": [(1,), (3,), ((11, 2),)],
    "interpolate": [((13, 20),), (None, 2.0), (None, 1.7, "bilinear", True), (5, None, "bicubic")],
    "pad": [((1, 2, 0, 3),), ((3, 2, 1, 4), "reflect"), ((2, 1, 1, 2), "circular"), ((-1, 2),)],
}


@pytest.mark.parametrize("name", WINDOWS)
@settings(parent=FEW, max_examples=8)
@given(data=st.data())
def test_windows_of_all_kinds_are_exact(name, data):
    arguments = data.draw(st.sampled_from(WINDOWS[name]))
    x = numbers(*IMAGE)
    lazy = getattr(arrays, name)(cut(x, data.draw(chunks(IMAGE))), *arguments)
    assert difference(lazy, getattr(F, name)(x, *arguments)) < 1e-12


@settings(parent=FEW, max_examples=12)
@given(st.data())
def test_products_with_summed_dims_in_chunks_are_exact(data):
    shape = data.draw(
        st.sampled_from([((5, 7), (7, 4)), ((2, 3, 7), (7, 4)), ((3, 5, 7), (3, 7, 2))])
    )
    x, y = numbers(*shape[0]), numbers(*shape[1])
    a, b = (cut(each, data.draw(chunks(each.shape))) for each in (x, y))
    assert difference(arrays.matmul(a, b), x @ y) < 1e-12
    if len(shape[1]) == 2:
        bias = numbers(4)
        assert difference(arrays.linear(a, b.T, bias), F.linear(x, y.T, bias)) < 1e-12


NORMS = {
    "batch_norm": (numbers(4), numbers(4).abs(), numbers(4), numbers(4)),
    "group_norm": (2, numbers(4), numbers(4)),
    "instance_norm": (),
    "layer_norm": ((11, 9), numbers(11, 9)),
    "softmax": (2,),
    "normalize": (),
}


@pytest.mark.parametrize("name", NORMS)
@settings(parent=FEW, max_examples=5)
@given(data=st.data())
def test_norms_over_chunks_are_exact(name, data):
    x = numbers(*IMAGE) * 3 + 100  # far from zero: moments must not cancel
    lazy = getattr(arrays, name)(cut(x, data.draw(chunks(IMAGE))), *NORMS[name])
    assert difference(lazy, getattr(F, name)(x, *NORMS[name])) < 1e-9


@pytest.mark.parametrize("name", sorted(set(arrays.ELEMENTWISE) - {"threshold", "prelu"}))
def test_activations_are_exact(name):
    x = numbers(3, 4, 5)
    lazy = getattr(arrays, name)(cut(x, (2, 3, 2)), *((1,) if name == "glu" else ()))
    assert difference(lazy, getattr(F, name)(x, *((1,) if name == "glu" else ()))) < 1e-14


def test_operators_compose_with_dask_and_compute_nothing_before():
    touched = []

    def load(block_id: Any = None) -> np.ndarray:
        touched.append(block_id)
        return np.ones((1, 2, 4, 4))

    x = da.map_blocks(load, chunks=((1, 1), (2,), (4, 4), (4,)), dtype="float64", meta=np.empty(0))
    y = arrays.relu(arrays.conv2d(x - 1.0, np.ones((3, 2, 3, 3)), padding=1))[:, ::2].mean((2, 3))
    assert touched == []
    assert y.compute().shape == (2, 2)
    assert len(touched) >= 4


def test_a_dim_of_equal_size_keeps_its_chunks_and_others_are_cut_in_proportion():
    x = da.zeros((2, 4, 12, 9), chunks=((1, 1), (4,), (2, 7, 3), (9,)))
    weight = np.zeros((6, 4, 3, 3))
    assert arrays.conv2d(x, weight, padding=1).chunks == ((1, 1), (6,), (2, 7, 3), (9,))
    assert arrays.max_pool2d(x, 2).chunks == ((1, 1), (4,), (1, 3, 2), (4,))
    filters = da.from_array(weight, chunks=(4, 4, 3, 3))
    assert arrays.conv2d(x, filters).chunks[1] == (4, 2)


def test_layers_have_names_that_tell_them_apart_and_tokens_that_stay():
    x = da.zeros((1, 2, 8, 8), chunks=(1, 2, 4, 8))
    weight = np.ones((2, 2, 3, 3))
    y = arrays.conv2d(x, weight, padding=1)
    assert y.name.startswith("conv2d-")
    assert {name.split("-")[0] for name in y.dask.layers} >= {
        "conv2d",
        "conv2d_halo",
        "weights_conv2d",
    }
    assert arrays.conv2d(x, weight, padding=1).name == y.name
    assert arrays.conv2d(x, weight + 1, padding=1).name != y.name
    assert arrays.conv2d(x, weight, padding=1, dilation=2).name != y.name


def test_only_the_rows_under_the_windows_travel():
    x = da.zeros((1, 1, 30, 4), chunks=(1, 1, 10, 4))
    y = arrays.conv2d(x, np.ones((1, 1, 3, 3)), padding=1)
    strips = next(tasks for name, tasks in y.dask.layers.items() if "halo" in name)
    assert len(strips) == 4  # one row for each side of each border


def test_any_function_on_tensors_becomes_an_operator():
    def code(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y += 1
        left, right = y.chunk(2, 1)
        return torch.where(left > 0, left, right.roll(1, 2)).transpose(1, 2) * x.shape[2]

    x = numbers(*IMAGE)
    lazy = arrays.operator(code)(cut(x, (1, 3, 4, 5)))
    assert lazy.name.startswith("code-")
    assert difference(lazy, code(x)) < 1e-14


def test_empty_arrays_stay_empty():
    x = da.zeros((0, 4, 6, 6), chunks=(1, 4, 3, 6))
    assert arrays.conv2d(x, np.zeros((2, 4, 3, 3))).compute().shape == (0, 2, 4, 4)


def looks_at_values(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


def test_refusals_are_sentences():
    x = da.zeros((1, 4, 6, 6), chunks=(1, 4, 3, 6))
    flat = da.zeros((6,), chunks=3)
    unknown = flat[flat > 0]
    for call, words in (
        (lambda: arrays.relu(unknown), "dim 0 of the array has chunks of unknown sizes"),
        (lambda: arrays.relu(da.from_array(np.array([{}, {}]), chunks=1)), "chunks hold object"),
        (lambda: arrays.relu(np.zeros(3)), "needs a dask array, and was given ndarray"),
        (lambda: arrays.conv2d(x, np.zeros((2, 3, 3, 3))), "conv2d does not take arrays of"),
        (lambda: arrays.operator(looks_at_values)(x), "to decide what to compute"),
        (lambda: arrays.operator(torch.bernoulli)(x), "draws random numbers"),
        (lambda: arrays.operator(lambda x: (x, x))(x), "returns a tuple"),
    ):
        with pytest.raises(PlanError, match=words):
            call()


@pytest.mark.parametrize("sides", [(-1, 2), (2, -1), (-1, -2), (0, 3)])
def test_padding_that_crops_an_array_of_one_chunk(sides: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    for pieces in ((2, 3, 6, 9), (1, 3, 4, 5)):
        lazy = arrays.pad(da.from_array(x.numpy(), chunks=pieces), sides)
        assert difference(lazy, F.pad(x, sides)) == 0
