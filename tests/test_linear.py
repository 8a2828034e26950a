"""Linear layers on features that are cut, and the layers that reshape for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_threads import check_layer
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.layers.carriers import carrier_of
from workbench.traced import Flat, Label, Traced
from workbench.verify import Proof, verify


def proven(module: nn.Module, x: Tensor, strategy: str, **options: object) -> Proof:
    proof = verify(module, x, strategy=strategy, **options)
    assert proof.same_result, proof
    assert proof.sent_bytes == proof.predicted_bytes
    return proof


def declared(module: nn.Module, *labels: Label, shape: tuple[int, ...]) -> tuple[Label, ...]:
    carrier = carrier_of(module)
    assert carrier is not None
    output = tuple(module(torch.zeros(shape)).shape)
    return carrier.declare(module, (Traced(shape, labels),), output).labels


@settings(deadline=None, max_examples=25)
@given(
    features=st.integers(1, 6),
    ranks=st.integers(2, 4),
    bias=st.booleans(),
    data=st.sampled_from((1, 2)),
)
def test_features_that_are_cut_are_multiplied_by_their_columns(
    features: int, ranks: int, bias: bool, data: int
) -> None:
    x = torch.randn(3, 2, features)
    assert check_layer(nn.Linear(features, 4, bias), x, spatial=ranks, dims=(2,), data=data) < 1e-10


def test_other_dims_of_a_linear_layer_need_nobody() -> None:
    x = torch.randn(2, 3, 5, 4)
    assert check_layer(nn.Linear(4, 3), x, spatial=2, dims=(2,)) < 1e-10


@settings(deadline=None, max_examples=25)
@given(
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strategy=st.sampled_from(("spatial=2", "spatial=3", "spatial=2x2", "data=2,spatial=2")),
    classes=st.sampled_from((1, 200)),
)
def test_a_head_after_flatten_adds_up_or_gathers_what_is_cheaper(
    sides: tuple[int, int], strategy: str, classes: int
) -> None:
    """With one class the products are few; with many the features are."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * sides[0] * sides[1], classes)
    )
    proven(model, torch.randn(2, 1, *sides), strategy)


def test_a_cut_linear_layer_sends_products_and_not_features() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 5, 1, bias=False))
    proof = proven(model, torch.randn(3, 2, 6, 5), "spatial=2")
    products, weights, arrived = 3, 60, 1
    assert sum(proof.sent_bytes) == 8 * 2 * (2 * products + weights + arrived)


@pytest.mark.parametrize(
    ("module", "shape", "labels", "expected"),
    [
        (nn.Flatten(), (2, 3, 4), ("", "", "dim2"), ("", Flat((("", 3), ("dim2", 4))))),
        (nn.Flatten(2), (2, 3, 4, 1), ("", "", "dim2", ""), ("", "", "dim2")),
        (nn.Flatten(1, 2), (2, 3, 4, 5), ("", "", "", "dim3"), ("", "", "dim3")),
        (nn.Flatten(0, 1), (2, 3, 4), ("", "", "dim2"), ("", "dim2")),
        (
            nn.Flatten(),
            (2, 3, 20),
            ("", "out:a", Flat((("dim2", 4), ("", 5)))),
            ("", Flat((("out:a", 3), ("dim2", 4), ("", 5)))),
        ),
        (nn.Linear(4, 7), (2, 3, 4), ("", "dim1", "dim2"), ("", "dim1", "out")),
        (nn.Unflatten(1, (3, 2)), (2, 6, 4), ("", "", "dim2"), ("", "", "", "dim2")),
        (nn.Identity(), (2, 6), ("", "dim1"), ("", "dim1")),
    ],
)
def test_labels_go_where_dims_go(
    module: nn.Module,
    shape: tuple[int, ...],
    labels: tuple[Label, ...],
    expected: tuple[Label, ...],
) -> None:
    assert declared(module, *labels, shape=shape) == expected


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Flatten(0, 2), "merges samples with positions; use a start_dim of 1 or more"),
        (nn.Unflatten(2, (2, 3)), "takes a dim apart that is cut"),
    ],
)
def test_what_cannot_be_cut_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        check_layer(module, torch.randn(2, 3, 6, 4), dims=(2,))


@pytest.mark.parametrize("middle", [nn.Identity(), nn.Dropout(0.4), nn.ReLU()])
def test_what_stands_between_flatten_and_linear(middle: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), middle, nn.Linear(2 * 5 * 3, 2))
    proven(model, torch.randn(3, 2, 5, 3), "spatial=2")


def test_a_linear_layer_used_in_several_ways() -> None:
    """Once on features that are cut, once where other dims are."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x.transpose(2, 3)).transpose(2, 3))

    proven(Twice(), torch.randn(2, 3, 4, 4), "spatial=2", spatial_dims=2)
