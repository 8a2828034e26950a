"""Whole models on dask arrays: the numbers of the model on the whole array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import torch
from chunked import Attends, ResNetLike, UNet, cut, difference, small_cnn, vgg_like
from torch import nn

import workbench as wb
from workbench import PlanError
from workbench.arrays import explain
from workbench.arrays.resident import Resident


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a model in eval mode, with statistics that are not those of a new one."""
    source = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=source)
            module.running_var.uniform_(0.5, 2, generator=source)
    return model.eval().to(dtype)


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "U-Net": (UNet, (1, 1, 37, 45), (1, 1, 13, 20)),
    "U-Net, bilinear": (lambda: UNet(smooth=True), (1, 1, 29, 22), (1, 1, 7, 22)),
    "U-Net, group norm": (
        lambda: UNet(norm=lambda c: nn.GroupNorm(2, c)),
        (1, 1, 21, 19),
        (1, 1, 10, 19),
    ),
    "ResNet-like": (ResNetLike, (2, 3, 43, 38), (1, 3, 15, 20)),
    "VGG-like": (vgg_like, (2, 3, 25, 31), (2, 3, 10, 16)),
    "attention": (Attends, (2, 1, 6, 5), (1, 1, 2, 5)),
}


@pytest.mark.usefixtures("in_this_thread")
@pytest.mark.parametrize("way", ["tiles", "layers"])
@pytest.mark.parametrize("name", MODELS)
def test_tiles_give_the_numbers_of_the_whole_image(name, way):
    make, shape, chunks = MODELS[name]
    torch.manual_seed(0)
    model, x = made(make()), numbers(*shape)
    lazy = wb.apply(model, cut(x, chunks), "spatial", way=way)
    with torch.no_grad():
        assert difference(lazy, model(x)) < 1e-12


@pytest.mark.usefixtures("in_this_thread")
def test_float32_and_tiles_of_other_sizes_than_the_chunks():
    torch.manual_seed(0)
    model, x = made(UNet(), torch.float32), numbers(1, 1, 45, 50, dtype=torch.float32)
    lazy = wb.apply(model, cut(x, (1, 1, 45, 17)), tile=(20, 31))
    assert lazy.chunks[2:] == ((20, 20, 5), (31, 19))
    with torch.no_grad():
        assert difference(lazy, model(x)) < 1e-6


def test_threads_of_one_process_share_the_model_and_give_the_same():
    torch.manual_seed(0)
    model, x = made(UNet()), numbers(2, 1, 30, 26)
    with torch.no_grad():
        want = model(x)
    with dask.config.set(scheduler="threads", num_workers=3):
        assert difference(wb.apply(model, cut(x, (1, 1, 8, 13))), want) < 1e-12
        assert difference(wb.apply(model, cut(x, (1, 1, 30, 26)), "data"), want) < 1e-12


@pytest.mark.usefixtures("in_this_thread")
def test_batches_give_the_numbers_of_the_model_in_fewer_larger_tasks():
    torch.manual_seed(0)
    model, x = made(small_cnn()), numbers(103, 1, 6, 6)
    lazy = wb.apply(model, cut(x, (5, 1, 3, 6)), "data", batch_size=16)
    assert max(lazy.chunks[0]) > 16 or lazy.numblocks[0] < 21
    with torch.no_grad():
        assert difference(lazy, model(x)) < 1e-14
    assert wb.apply(model, cut(x, (5, 1, 3, 6)), "data", batch_size=16).name == lazy.name


def test_a_model_is_loaded_once_in_a_process():
    resident = Resident.of(made(small_cnn()))
    assert resident.model is Resident(resident.data, resident.token).model


def test_the_receptive_field_and_the_choice_are_said():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, 2, 2)).eval()
    found = explain(model, da.zeros((1, 1, 64, 80), chunks=(1, 1, 16, 80), dtype="float32"))
    assert found.strategy == "spatial"
    assert [(f.size, f.stride, f.padding) for f in found.field] == [(7, 2, 3), (7, 2, 3)]
    text = str(found)
    assert "receptive field along dim 2: 7 of 64 rows, stride 2, padding 3" in text
    assert "times those without overlap" in text
    assert "auto took spatial" in text
    by_samples = explain(model, da.zeros((9, 1, 8, 8), chunks=(2, 1, 8, 8), dtype="float32"))
    assert "auto took data" in str(by_samples)


def test_a_global_layer_is_handled_in_passes_and_named():
    model = made(ResNetLike(), torch.float32)
    x = da.zeros((1, 3, 64, 64), chunks=(1, 3, 32, 64), dtype="float32")
    text = str(explain(model, x, "spatial"))
    assert "passes" in text
    assert "norm (moments)" in text
    assert "gate.0 (mean)" in text


def test_a_receptive_field_larger_than_the_array_is_said(in_this_thread):
    layers = [nn.Conv2d(1, 1, 3, padding=4, dilation=4) for _ in range(3)]
    model, x = made(nn.Sequential(*layers)), numbers(1, 1, 12, 12)
    found = explain(model, cut(x, (1, 1, 4, 12)), "spatial")
    assert "sees all 12 rows of dim 2" in str(found)
    with torch.no_grad():
        assert difference(found.array, model(x)) < 1e-14


def test_what_cannot_be_applied_is_refused_in_a_sentence():
    x = da.zeros((4, 1, 8, 8), chunks=(2, 1, 8, 8), dtype="float32")
    model = small_cnn().eval()
    half = nn.Sequential(model, nn.Dropout()).eval()
    half[1].train()
    unknown = da.concatenate([x, x])[da.from_array(np.ones(8, bool), chunks=4)]
    big = da.zeros((1, 1, 100_000, 64), chunks=(1, 1, 10_000, 64), dtype="float32")
    for call, words in (
        (lambda: wb.apply(small_cnn(), x), r"call model\.eval\(\) first"),
        (lambda: wb.apply(half, x), r"layer '1' is in training mode"),
        (lambda: wb.apply(model, unknown), "chunks of unknown sizes"),
        (lambda: wb.apply(model, x.astype("float64")), r'x.astype\("float32"\)'),
        (lambda: wb.apply(model, x, "tensor"), "there is no such strategy"),
        (lambda: wb.apply(model, x, batch_size=0), "at least 1 sample"),
        (lambda: wb.apply(nn.Linear(3, 3).eval(), x, "data"), "does not take 2 samples"),
        (lambda: wb.apply(small_cnn().eval().to("meta"), x), r"use model\.cpu\(\)"),
        (lambda: wb.apply(Attends().eval(), big), "needs all positions of dim"),
    ):
        with pytest.raises(PlanError, match=words):
            call()


@pytest.mark.usefixtures("in_this_thread")
def test_models_are_scored_without_gathering():
    torch.manual_seed(0)
    model, x = made(small_cnn(), torch.float32), numbers(50, 1, 6, 6, dtype=torch.float32)
    y = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(2))
    score = wb.evaluate(model, (cut(x, (7, 1, 6, 3)), cut(y, 11)), batch_size=8)
    with torch.no_grad():
        out = model(x)
    assert score.samples == 50
    assert score.loss == pytest.approx(nn.functional.cross_entropy(out, y).item(), rel=1e-5)
    assert score.accuracy == pytest.approx((out.argmax(1) == y).double().mean().item())
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (y.numpy(), out.argmax(1).numpy()), 1)
    np.testing.assert_array_equal(score.confusion, table)


@pytest.mark.usefixtures("in_this_thread")
def test_an_image_goes_from_zarr_to_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    torch.manual_seed(0)
    model, x = made(UNet(), torch.float32), numbers(1, 1, 40, 44, dtype=torch.float32)
    cut(x, (1, 1, 16, 16)).to_zarr(str(tmp_path / "x.zarr"))
    wb.apply(model, da.from_zarr(str(tmp_path / "x.zarr"))).to_zarr(str(tmp_path / "y.zarr"))
    with torch.no_grad():
        want = model(x).numpy()
    assert np.abs(zarr.open(str(tmp_path / "y.zarr"))[:] - want).max() < 1e-6
