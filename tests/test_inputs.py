"""Bad input is refused in one sentence, and losses that ranks can share are told from others."""

from __future__ import annotations

import re
from functools import partial

import dask.array as da
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.datasets.scan import Rule, scan
from workbench.errors import PlanError
from workbench.inputs import check_loss, check_values, check_workload
from workbench.losses import NextByteLoss, class_dim, loss_weight
from workbench.trials import like, loss_kind
from workbench.workload import Workload, workload

pytestmark = pytest.mark.usefixtures("in_this_thread")

SAMPLES, CLASSES = 20, 4
X = np.random.default_rng(0).standard_normal((SAMPLES, 3)).astype(np.float32)
Y = np.arange(SAMPLES) % CLASSES


def make(**changes) -> Workload:
    return Workload(
        **{"model": lambda: nn.Linear(3, CLASSES), "data": (X, Y), "batch_size": 4, **changes}
    )


# ---------------------------------------------------------------------------- without values


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "nearest that works is 1"),
        (-3, "nearest that works is 1"),
        (21, "batch_size=21 does not fit 20 samples; the nearest that works is 20"),
        (True, "whole number"),
        (4.0, "whole number"),
        ("4", "whole number"),
    ],
)
def test_batch_sizes(size, reason):
    with pytest.raises(PlanError, match=reason):
        check_workload(make(batch_size=size))


@pytest.mark.parametrize("size", [1, 7, SAMPLES])
def test_every_batch_size_that_fits_is_taken(size):
    check_workload(make(batch_size=size))


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"steps": 2.5}, {"seed": -1}, {"seed": True}], ids=str
)
def test_numbers(changes):
    with pytest.raises(PlanError, match=f"{next(iter(changes))}=.* whole number of at least"):
        check_workload(make(**changes))


def frozen() -> nn.Module:
    return nn.Linear(3, CLASSES).requires_grad_(False)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return self.scale * F.cross_entropy(output, target)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": lambda: nn.Flatten()}, "no trainable parameters"),
        ({"model": frozen}, "no trainable parameters"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS evaluates the model several times"),
        ({"loss": Learned()}, "Learned has parameters of its own"),
        ({"data": (X, Y.astype(float))}, r"give y\.astype\('int64'\)"),
        ({"data": (X, Y.astype(float)), "loss": F.cross_entropy}, "real numbers"),
        ({"data": (X, X), "loss": nn.NLLLoss()}, "NLLLoss needs whole ones"),
        ({"model": nn.Linear, "batch_size": 4}, "Making the model failed: TypeError"),
    ],
)
def test_workloads_that_cannot_learn(changes, reason):
    with pytest.raises(PlanError, match=reason):
        check_workload(make(**changes))


# ---------------------------------------------------------------------------- losses


def named(value) -> str:
    """The same name in every process: workers of one test run must agree on it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def huber_of_sums(output, target):
    return F.huber_loss(output.sum(0), target.sum(0))


LABELS = ((), "int64")
NUMBERS = ((CLASSES,), "float32")
WEIGHT = torch.tensor([0.1, 0.2, 0.3, 1.4])


@pytest.mark.parametrize(
    ("loss", "targets", "kind"),
    [
        (nn.CrossEntropyLoss(), LABELS, "mean"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS, "mean"),
        (nn.CrossEntropyLoss(reduction="sum"), LABELS, "sum"),
        (nn.CrossEntropyLoss(reduction="sum", weight=WEIGHT), LABELS, "sum"),
        (nn.CrossEntropyLoss(weight=WEIGHT), LABELS, "weighted"),
        (nn.CrossEntropyLoss(ignore_index=-1), LABELS, "weighted"),
        (nn.CrossEntropyLoss(ignore_index=0), LABELS, "weighted"),
        (nn.CrossEntropyLoss(weight=WEIGHT), NUMBERS, "mean"),
        (nn.NLLLoss(weight=WEIGHT), LABELS, "weighted"),
        (F.cross_entropy, LABELS, "mean"),
        (partial(F.cross_entropy, weight=WEIGHT), LABELS, "weighted"),
        (nn.MultiMarginLoss(), LABELS, "mean"),
        (nn.MSELoss(), NUMBERS, "mean"),
        (nn.L1Loss(reduction="sum"), NUMBERS, "sum"),
        (nn.BCELoss(), NUMBERS, "mean"),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), NUMBERS, "mean"),
        (nn.KLDivLoss(reduction="batchmean"), NUMBERS, "mean"),
        (partial(F.mse_loss, reduction="sum"), NUMBERS, "sum"),
        # Of these only the targets in the data tell what they divide by.
        (lambda output, target: (output - target).square().mean(), NUMBERS, "weighted"),
        (lambda output, target: F.cross_entropy(output, target), LABELS, "weighted"),
        (lambda output, target: (output.argmax(1) == target).double().mean(), LABELS, "mean"),
    ],
    ids=named,
)
def test_how_a_loss_sums_over_samples(loss, targets, kind):
    assert loss_kind(loss, like((CLASSES,), "float32"), *targets) == kind


@pytest.mark.parametrize(
    ("loss", "targets", "reason"),
    [
        (huber_of_sums, NUMBERS, "huber_of_sums is neither the mean nor the sum"),
        (lambda output, target: output.square().mean().sqrt(), NUMBERS, "neither"),
        (lambda output, target: output.sum() * 0, NUMBERS, "neither"),
        (nn.MSELoss(reduction="none"), NUMBERS, r"gives \(3, 4\) for 3 samples.*reduction='mean'"),
        (lambda output, target: 1.0, NUMBERS, "gives float"),
        (nn.CrossEntropyLoss(weight=WEIGHT[:3]), LABELS, "3 classes and the model gives 4"),
        (nn.CrossEntropyLoss(), ((1,), "int64"), r"targets of shape \(3, 1\) and dtype int64"),
        (nn.BCEWithLogitsLoss(), ((1,), "float32"), r"output of shape \(3, 4\)"),
    ],
    ids=named,
)
def test_losses_that_ranks_cannot_share(loss, targets, reason):
    with pytest.raises(PlanError, match=reason):
        loss_kind(loss, like((CLASSES,), "float32"), *targets)


def test_the_loss_of_a_workload_is_tried_in_its_dtype():
    weighted = make(dtype="float64", loss=nn.CrossEntropyLoss(weight=WEIGHT))
    assert check_loss(weighted, like((CLASSES,), "float64")) == "weighted"
    assert check_loss(workload("stdlib-gpt"), like((128, 256), "float32")) == "mean"
    assert check_loss(workload("photo-denoise"), like((3, 427, 640), "float32")) == "mean"


@given(
    ignored=st.sampled_from([-100, -1, 0, 2]),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    by_position=st.booleans(),
    cut=st.integers(0, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_weighted_losses_of_parts_make_that_of_the_whole(
    ignored, weighted, smoothing, by_position, cut, seed
):
    source = torch.Generator().manual_seed(seed)
    kind = NextByteLoss if by_position else nn.CrossEntropyLoss
    loss = kind(WEIGHT if weighted else None, ignore_index=ignored, label_smoothing=smoothing)
    loss = loss.double()
    shape = (12, 3) if by_position else (12,)
    output = torch.randn((*shape, CLASSES), generator=source, dtype=torch.float64)
    target = torch.randint(CLASSES, shape, generator=source)
    target[0] = ignored
    assert class_dim(loss) == (-1 if by_position else 1)
    parts = [
        (loss_weight(loss, target[part]), output[part], target[part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    total = sum(w for w, _, _ in parts)
    whole = sum(w * loss(o, t) for w, o, t in parts if w) / total
    torch.testing.assert_close(whole, loss(output, target), check_dtype=False)


# ---------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(value):
    x = X.copy()
    x[13, 2] = x[17, 0] = value
    with pytest.raises(PlanError, match=rf"^x\[13, 2\] is {value}, and 1 more.*finite"):
        check_values(make(data=(x, Y)), CLASSES)
    with pytest.raises(PlanError, match=rf"^test x\[13, 2\] is {value}"):
        check_values(make(test_data=(x, Y)), CLASSES)
    with pytest.raises(PlanError, match=rf"^y\[13, 2\] is {value}"):
        check_values(make(data=(X, x), loss=nn.MSELoss()), None)


def test_numbers_too_large_for_the_dtype_are_named():
    x = X.astype(np.float64)
    x[3, 0] = 1e300
    with (
        pytest.warns(RuntimeWarning, match="overflow"),
        pytest.raises(PlanError, match=r"x\[3, 0\] is inf"),
    ):
        check_values(make(data=(x, Y)), CLASSES)
    check_values(make(data=(x, Y), dtype="float64"), CLASSES)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (4, r"y\[5\] is 4; labels must be 0 to 3, as the model gives 4 classes"),
        (-1, r"y\[5\] is -1; .*ignore_index=-1"),
    ],
)
def test_labels_out_of_range(label, reason):
    y = Y.copy()
    y[5] = label
    with pytest.raises(PlanError, match=reason):
        check_values(make(data=(X, y)), CLASSES)
    check_values(make(data=(X, y), loss=nn.CrossEntropyLoss(ignore_index=label)), CLASSES)
    check_values(make(data=(X, y), loss=nn.MultiMarginLoss()), CLASSES)


def test_torchs_default_of_ignored_labels_is_no_choice():
    # It cannot be told from ignore_index=-100, and a plain mean costs ranks one message less.
    with pytest.raises(PlanError, match=r"y\[0\] is -100, and 19 more.*ignore_index=-1"):
        check_values(make(data=(X, np.full(SAMPLES, -100))), CLASSES)


def test_good_data_passes():
    check_values(make(), CLASSES)
    check_values(workload("digits-cnn"), 10)
    check_values(workload("stdlib-gpt"), 256)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    chunks=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_offenders_are_those_that_numpy_finds(shape, chunks, seed):
    values = np.random.default_rng(seed).integers(-2, 8, shape)
    found = scan({"y": (da.from_array(values, chunks=chunks), Rule(classes=7, ignored=-1))})
    bad = np.argwhere(((values < 0) | (values > 6)) & (values != -1))
    if not len(bad):
        assert found == {}
        return
    first = min(map(tuple, bad.tolist()))
    assert (found["y"].count, found["y"].index) == (len(bad), first)
    assert found["y"].value == values[first]


@pytest.mark.timeout(60)
def test_values_are_looked_at_by_the_workers_of_a_client():
    x = X.copy()
    x[13, 2] = np.nan
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        check_values(make(), CLASSES, client)
        with pytest.raises(PlanError, match=r"^x\[13, 2\] is nan"):
            check_values(make(data=(x, Y)), CLASSES, client)
