"""Workloads: any model, data, loss and optimizer that a user may bring, taken over unchanged."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Lock

import dask
import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from workbench.catalogue import CATALOGUE
from workbench.errors import PlanError
from workbench.losses import NextByteLoss
from workbench.recipe import load_payload
from workbench.workload import Workload, workload

X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
Y = np.arange(12) % 2


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def make(**changes) -> Workload:
    return Workload(**{"model": net, "data": (X, Y), "batch_size": 4, **changes})


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


# ---------------------------------------------------------------------------- to the ranks


class Mine(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 2))


MODULE = """
from torch import nn
WIDTH = 2
def helper():
    return WIDTH
class FromAFile(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, helper())
    def forward(self, x):
        return self.layer(x)
"""
SCRIPT = """
import sys
from torch import nn
import numpy as np
from workbench.workload import Workload
class InACell(nn.Linear):
    pass
work = Workload(model=InACell(3, 2), data=(np.ones((4, 3)), np.zeros(4, int)), batch_size=2)
open(sys.argv[1], "wb").write(work.payload())
"""
LOADER = """
import sys, torch
from workbench.recipe import load_payload
for path in sys.argv[1:]:
    recipe = load_payload(open(path, "rb").read())
    model = recipe.make_model()
    output = model(torch.ones((2, *recipe.sample_shape)))
    recipe.loss(output, torch.zeros(2, dtype=torch.int64)).backward()
    recipe.make_optimizer(model.named_parameters()).step()
    print(type(model).__name__)
"""


@pytest.mark.timeout(60)
def test_models_of_notebook_cells_files_and_functions_reach_a_process_without_them(
    tmp_path, monkeypatch
):
    (tmp_path / "my_own_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import my_own_model  # type: ignore[import-not-found]

    class InAFunction(nn.Linear):
        pass

    payloads = {
        "file": make(model=my_own_model.FromAFile()).payload(),
        "factory": make(model=my_own_model.FromAFile).payload(),
        "function": make(model=lambda: InAFunction(3, 2)).payload(),
        "test module": make(model=Mine()).payload(),
    }
    paths = []
    for name, payload in payloads.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(payload)
    paths.append(tmp_path / "cell")
    subprocess.run([sys.executable, "-c", SCRIPT, paths[-1]], check=True, timeout=50)
    elsewhere = subprocess.run(
        [sys.executable, "-c", LOADER, *paths],
        check=True,
        timeout=50,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert elsewhere.stdout.split() == ["FromAFile", "FromAFile", "InAFunction", "Mine", "InACell"]
    del sys.modules["my_own_model"]


def test_installed_code_is_not_sent_along():
    assert len(workload("digits-cnn").payload()) < 2_000
    assert len(make(model=net()).payload()) < 10_000


def test_what_cannot_be_sent_is_named():
    lock = Lock()

    def factory():
        return lock and net()

    with pytest.raises(PlanError, match=r"'lock', used in the model, cannot be sent.*pickle"):
        make(model=factory).payload()
    with pytest.raises(PlanError, match="'lock', used in the loss, cannot be sent"):
        make(loss=lambda output, target: lock and output.sum()).payload()


def test_a_recipe_is_the_same_on_the_other_side():
    work = make(model=net(), optimizer=torch.optim.Adam, loss=nn.CrossEntropyLoss(), seed=4)
    recipe = load_payload(work.payload())
    assert recipe.sample_shape == (3,)
    assert recipe.target_shape == ()
    assert (recipe.seed, recipe.batch_size, recipe.input_dtype) == (4, 4, "float32")
    for a, b in zip(recipe.make_model().parameters(), work.make_model().parameters(), strict=True):
        assert torch.equal(a, b)


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
