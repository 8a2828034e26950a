"""wb.verify: what it proves, what it refuses, and that it can say no."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.strategies import STRATEGIES
from workbench.verify import verify

NORMS = {
    "plain": lambda: nn.BatchNorm2d(4),
    "no affine": lambda: nn.BatchNorm2d(4, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "no running": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "torch's synchronized": lambda: nn.SyncBatchNorm(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "dropout": lambda: nn.Dropout(0.4),
    "channel dropout": lambda: nn.Dropout2d(0.4),
}


@given(
    st.sampled_from(list(NORMS)),
    st.integers(1, 4),
    st.integers(4, 9),
    st.integers(1, 5),
    st.sampled_from(list(STRATEGIES)),
)
@settings(max_examples=60, deadline=None)
def test_layers_equal_serial(norm: str, degree: int, batch: int, size: int, axis: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), NORMS[norm](), nn.Flatten())
    degree = min(degree, 3) if axis == "pipeline" else degree  # it has three layers
    proof = verify(net, 5 + torch.randn(batch, 3, size, size), strategy=f"{axis}={degree}")
    assert proof.refusal is None
    assert proof.max_difference is not None
    assert proof.max_difference <= 1e-10
    assert proof.same_result
    assert proof.ranks == degree


def test_statistics_are_exact_far_from_zero() -> None:
    """A difference of sums of squares would lose all digits here."""
    x = 1e6 + torch.randn(8, 4, 3, 3, dtype=torch.float64)
    proof = verify(nn.BatchNorm2d(4), x, strategy="data=3")
    assert proof.outputs is not None
    assert proof.outputs < 1e-7


class Mixer(nn.Module):
    """Mixes samples in a way that nobody declares."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_wrong_result_is_called_wrong() -> None:
    proof = verify(Mixer(), torch.randn(6, 3), strategy="data=2")
    assert not proof.same_result
    assert proof.outputs is not None
    assert proof.outputs > 0.01
    assert "NOT the serial result" in str(proof)
    local = verify(nn.BatchNorm1d(3), torch.randn(6, 3), strategy="data=2", batch_norm="local")
    assert not local.same_result


class Branches(nn.Module):
    """Several inputs, one of them whole on every rank; several outputs; an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused = nn.Linear(4, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor, table: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"a": self.first(x) @ table, "b": [x.sum(1), index + 1]}  # type: ignore[dict-item]


def test_several_inputs_and_outputs() -> None:
    inputs = torch.randn(6, 4), torch.randn(4, 5), torch.arange(6)
    proof = verify(Branches(), *inputs, strategy="data=4")
    assert proof.same_result, proof
    assert proof.input_gradients is not None


def test_the_module_is_not_changed() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    verify(net, torch.randn(6, 3), strategy="data=2")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[0].weight.grad is None


def test_a_refusal_is_returned() -> None:
    proof = verify(nn.Linear(3, 3), torch.randn(2, 3), strategy="data=3")
    assert proof.refusal is not None
    assert "Use data=2" in proof.refusal
    assert proof.max_difference is None
    assert not proof.same_result
    summed = verify(Summed(), torch.randn(4, 3), strategy="data=2")
    assert summed.refusal is not None


class Summed(nn.Module):
    """Has no output per sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


@pytest.mark.parametrize(
    ("inputs", "strategy", "says"),
    [
        ((torch.zeros(4, 7),), "data=2", "does not take a batch of shape"),
        (([1, 2],), "data=2", "takes tensors"),
        ((torch.zeros(4, 3),), "date=2", "is not a strategy"),
    ],
)
def test_nonsense_is_refused(inputs: tuple[Tensor], strategy: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        verify(nn.Linear(3, 3), *inputs, strategy=strategy)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(PlanError, match="batch_norm='bogus'"):
        verify(nn.Linear(3, 2), torch.randn(4, 3), strategy="data=2", batch_norm="bogus")


class GivesNothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


def test_nothing_to_compare_is_said() -> None:
    proof = verify(GivesNothing(), torch.randn(4, 3), strategy="data=2")
    assert not proof.same_result
    assert str(proof) == "data=2 on 2 ranks: there is nothing to compare"


def test_lazy_layers_without_a_shape_are_refused() -> None:
    with pytest.raises(PlanError, match="lazy layers"):
        verify(nn.LazyLinear(2), torch.randn(4, 3), strategy="data=2")
