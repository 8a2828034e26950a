"""Products of few rows with a large weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from workbench.layers import few_rows
from workbench.layers.weight_gradients import WeightGradients

SIZES = st.sampled_from([(256, 256), (300, 257), (70, 1000), (1000, 70), (65536, 1), (1, 65536)])


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 70), st.booleans(), st.booleans(), st.booleans())
def test_they_are_those_of_torch(sizes, rows, biased, deep, turned):
    source = torch.Generator().manual_seed(rows)
    made, read = sizes
    weight = torch.randn(read, made, generator=source).t()
    weight = weight if turned else weight.contiguous()
    x = torch.randn(*((1, rows) if deep else (rows,)), read, generator=source)
    bias = torch.randn(2 * made, generator=source)[::2] if biased else None
    if biased and deep:
        bias = torch.randn(1, generator=source)
    grad = torch.randn(*x.shape[:-1], made, generator=source)
    with torch.no_grad():
        got = few_rows.linear(x, weight, bias), few_rows.times(grad, weight)
    of_64 = x.double(), weight.double(), None if bias is None else bias.double()
    want = F.linear(*of_64), grad.double() @ weight.double()
    for mine, theirs in zip(got, want, strict=True):
        assert mine.is_contiguous()
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=2e-3)


def test_onednn_is_asked_for_few_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    product = few_rows._product
    monkeypatch.setattr(few_rows, "_product", lambda *of: asked.append(of[0].shape) or product(*of))
    layer = nn.Linear(256, 512)
    weights = WeightGradients()
    weights.watch(layer, halves=False)
    for rows in (1, 16, 64, 65):
        x = torch.randn(rows, 256, requires_grad=True)
        with weights.collecting():
            layer(x).sum().backward()
    assert asked == [(16, 256), (16, 512), (512, 256), (64, 512)]
    asked.clear()
    with monkeypatch.context() as without:
        without.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        layer(torch.randn(16, 256))
    assert not asked
    layer.double()(torch.randn(16, 256, dtype=torch.float64))
    assert not asked


def test_a_gradient_may_be_differentiated_again() -> None:
    layer = nn.Linear(256, 256)
    WeightGradients().watch(layer, halves=False)
    x = torch.randn(16, 256, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.sum().backward()
    want = 2 * (layer.weight.detach().t() @ layer.weight.detach()).sum(0)
    torch.testing.assert_close(x.grad, want.expand(16, -1), rtol=1e-4, atol=1e-4)
