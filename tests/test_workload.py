"""Workloads: any model, data, loss and optimizer that a user may bring, taken over unchanged."""

from __future__ import annotations

import subprocess
import sys
from threading import Lock

import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from workloads import X, Y, make, net

from workbench.catalogue import CATALOGUE
from workbench.errors import PlanError
from workbench.losses import NextByteLoss
from workbench.workload import workload

pytestmark = pytest.mark.usefixtures("in_this_thread")

# ---------------------------------------------------------------------------- data


@given(
    dtype=st.sampled_from(["bool", "uint8", "int16", ">i4", "float16", "<f4", ">f8", "float64"]),
    shape=hnp.array_shapes(min_dims=2, max_dims=3, max_side=12),
    step=st.sampled_from([1, -1, 2]),
    kind=st.sampled_from(["numpy", "fortran", "read-only", "dask", "tensor"]),
)
@settings(max_examples=60, deadline=None)
def test_data_of_any_layout_keeps_its_values(dtype, shape, step, kind):
    given_array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)[::step]
    if kind == "fortran":
        given_array = np.asfortranarray(given_array)
    elif kind == "read-only":
        given_array.setflags(write=False)
    taken = given_array
    if kind == "dask":
        taken = da.from_array(given_array, chunks=3)
    elif kind == "tensor":
        taken = torch.from_numpy(given_array.astype(given_array.dtype.newbyteorder("="), order="C"))
    work = make(data=(taken, np.zeros(len(given_array), int)), model=lambda: nn.Linear(1, 1))
    got = work.x.compute()
    assert (got.dtype, got.shape) == (np.dtype("float32"), given_array.shape)
    assert got.flags.c_contiguous
    torch.from_numpy(got)
    np.testing.assert_array_equal(got, given_array.astype("float32"))
    assert work.samples == len(given_array)
    assert work.sample_shape == given_array.shape[1:]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes_of_data(dtype):
    work = make(dtype=dtype, data=(X.astype("float16"), X[:, 0].astype(">f8")))
    assert (work.input_dtype, work.target_dtype) == (dtype, dtype)
    assert make(dtype=dtype, data=(X, Y.astype("uint8"))).target_dtype == "int64"
    assert make(dtype=dtype, data=(X > 0, Y > 0)).input_dtype == dtype
    assert work.make_model()[0].weight.dtype == getattr(torch, dtype)


def test_whole_numbers_stay_whole_for_an_embedding():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    work = make(model=model, data=(np.zeros((12, 3), np.uint8), Y))
    assert work.input_dtype == "int64"
    assert work.x.compute().dtype == np.int64


def test_tensors_that_need_gradients_or_bfloat16_are_taken():
    x = torch.from_numpy(X).bfloat16().requires_grad_()
    np.testing.assert_array_equal(make(data=(x, Y)).x.compute(), x.detach().float().numpy())


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (X, Y[:-1], "12 samples in x and 11 in y"),
        (X[:0], Y[:0], "holds no sample"),
        (np.float32(1), Y, "float32"),
        (np.array(1.0), Y, "holds no sample"),
        (X.tolist(), Y, "x is a list"),
        (X.astype(object), Y, "dtype object"),
        (X.astype(str), Y, "dtype <U"),
        (X.astype("complex64"), Y, "dtype complex64"),
        (np.ma.masked_array(X, X > 0), Y, "masked"),
        (torch.from_numpy(X).to_sparse(), Y, "sparse"),
        (torch.empty(12, 3, device="meta"), Y, "meta"),
        (da.from_array(X)[da.from_array(X[:, 0]) > 0], Y, "compute_chunk_sizes"),
        (da.from_array(X).map_blocks(np.ma.masked_array, meta=np.ma.empty((0, 0))), Y, "chunks"),
        (da.zeros((200_000, 1), chunks=(1, 1)), Y, "200,000 chunks"),
        (X, None, "y is a NoneType"),
    ],
)
def test_data_that_cannot_be_used_is_refused(x, y, reason):
    with pytest.raises(PlanError, match=reason):
        make(data=(x, y))


def test_data_that_is_no_pair_is_refused():
    with pytest.raises(PlanError, match=r"pair \(x, y\)"):
        make(data=X)
    with pytest.raises(PlanError, match="test data has 12 samples in x and 1"):
        make(test_data=(X, Y[:1]))


# ---------------------------------------------------------------------------- model


def test_a_model_is_copied_and_never_changed():
    mine = net().eval()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    work = make(model=mine, dtype="float64")
    with torch.no_grad():
        mine[0].weight.zero_()
    made = work.make_model()
    assert made.training
    assert not mine.training
    assert mine[0].weight.dtype == torch.float32
    torch.testing.assert_close(made[0].weight, before["0.weight"].double())
    assert work.make_model() is not made


def test_the_seed_rules_a_factory_and_leaves_the_callers_random_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (make(seed=seed).make_model()[0].weight for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("factory", [False, True])
def test_lazy_layers_get_their_shapes_from_the_data(factory):
    def lazy() -> nn.Module:
        norm = nn.LazyBatchNorm1d() if factory else nn.BatchNorm1d(4)
        return nn.Sequential(nn.LazyLinear(4), norm, nn.LazyLinear(2))

    work = make(model=lazy if factory else lazy(), dtype="float64")
    model = work.make_model()
    assert model[0].weight.shape == (4, 3)
    assert model[0].weight.dtype == torch.float64
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[0].weight, work.make_model()[0].weight)


def test_lazy_layers_that_cannot_get_a_shape_are_refused():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Linear(1, 1))
    with pytest.raises(PlanError, match=r"sample of shape \(3,\)"):
        make(model=model).make_model()


def test_models_that_are_none_are_refused():
    with pytest.raises(PlanError, match="is a int"):
        make(model=3)
    with pytest.raises(PlanError, match="gave a float"):
        make(model=lambda: 1.0).make_model()
    with pytest.raises(PlanError, match="Making the model failed: ZeroDivisionError"):
        make(model=lambda: 1 / 0).make_model()
    with pytest.raises(PlanError, match="meta device"):
        make(model=nn.Linear(3, 2, device="meta"))
    uncopyable = net()
    uncopyable[2].lock = Lock()
    with pytest.raises(PlanError, match=r"The model\.2\.lock cannot be copied"):
        make(model=uncopyable)
    with pytest.raises(PlanError, match=r"The model\.0 cannot be copied .*function that makes it"):
        make(model=nn.Sequential(nn.LazyBatchNorm1d()))


# ---------------------------------------------------------------------------- loss


def test_a_loss_is_copied_into_the_dtype():
    weights = torch.tensor([1.0, 2.0])
    mine = nn.CrossEntropyLoss(weight=weights)
    work = make(loss=mine, dtype="float64")
    assert work.loss.weight.dtype == torch.float64
    assert mine.weight.dtype == torch.float32
    assert isinstance(make().loss, nn.CrossEntropyLoss)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, 3])
def test_a_loss_that_is_no_function_is_refused(loss):
    with pytest.raises(PlanError, match="not a function of outputs and targets"):
        make(loss=loss)


# ---------------------------------------------------------------------------- the catalogue


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_learns(name):
    work = workload(name, dtype="float64", batch_size=2)
    assert work.name == name == CATALOGUE[name].name
    x, y = (torch.from_numpy(a[:2].compute()) for a in (work.x, work.y))
    if name == "photo-denoise":
        x, y = x[..., :48, :48], y[..., :48, :48]
    model = work.make_model()
    optimizer = work.make_optimizer(model.parameters())
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = work.loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert work.test_x is not None
    assert sum(p.numel() for p in model.parameters()) < (5.2e6 if name == "digits-mlp" else 6e5)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogues_models_run_without_values(name):
    work = workload(name)
    model = work.make_model().to("meta")
    shape = (3, *work.sample_shape)
    output = model(torch.empty(shape, dtype=getattr(torch, work.input_dtype), device="meta"))
    assert output.shape[0] == 3


def test_next_byte_loss_is_the_mean_over_positions():
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    want = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(NextByteLoss()(logits, targets), want)


def test_changes_and_names_that_do_not_exist_are_refused():
    assert workload("digits-mlp", batch_size=16).batch_size == 16
    with pytest.raises(PlanError, match="did you mean 'digits-cnn'"):
        workload("digit-cnn")
    with pytest.raises(PlanError, match="there are digits-cnn, digits-mlp"):
        workload("?")
    with pytest.raises(PlanError, match="did you mean 'batch_size'"):
        workload("digits-cnn", batchsize=3)
    with pytest.raises(PlanError, match="float32 or float64"):
        workload("digits-cnn", dtype="int8")
    assert workload("digits-cnn", dtype=torch.float64).dtype == "float64"


def test_a_change_leaves_the_rest_and_the_original():
    mine = net()
    work = make(model=mine, optimizer=torch.optim.SGD(mine.parameters(), lr=0.25))
    other = work.with_(seed=3, dtype="float64")
    assert (work.seed, work.dtype) == (0, "float32")
    assert (other.seed, other.x.dtype) == (3, np.float64)
    assert other.make_optimizer(other.make_model().parameters()).defaults["lr"] == 0.25
    assert repr(work) == "<Workload custom: Sequential, 12 samples of shape (3,), batch 4, float32>"


def test_importing_workloads_loads_neither_torch_nor_dask():
    code = (
        "import sys, workbench.workload, workbench.catalogue\n"
        "assert not {'torch', 'dask'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
