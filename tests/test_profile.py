"""Profiles: shapes, FLOPs and bytes from the meta device, and refusals that name the layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.profile import profile


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_flops_and_bytes_are_those_of_the_definitions() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5)
    )
    conv, relu, flatten, linear = profile(net, meta(4, 3, 8, 8)).layers
    assert conv.output_shape == (4, 8, 3, 3)
    assert conv.forward_flops == 2 * 4 * 8 * 3 * 3 * (3 * 3 * 3)
    assert conv.parameter_bytes == 4 * (8 * 3 * 9 + 8)
    assert conv.activation_bytes == 4 * 4 * 8 * 9
    assert relu.forward_flops == flatten.forward_flops == 0
    assert linear.forward_flops == 2 * 4 * 72 * 5
    assert [a.name for a in linear.parameters] == ["3.weight", "3.bias"]


def test_a_large_model_takes_no_memory() -> None:
    with torch.device("meta"):
        net = nn.Linear(100_000, 1_000_000)
    (layer,) = profile(net, meta(1000, 100_000)).layers
    assert layer.parameter_bytes == 4 * (10**11 + 10**6)


class Attention(nn.Module):
    """Computes in its own code, and holds a parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(5, 16))
        self.q = nn.Linear(16, 16)
        self.tied = self.q

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x + self.position)
        return self.tied(nn.functional.scaled_dot_product_attention(q, q, q))


def test_code_of_a_module_and_tied_layers_are_counted_once() -> None:
    layers = profile(Attention(), meta(2, 5, 16)).layers
    assert [layer.name for layer in layers] == ["q", "q", "Attention"]
    linear = 2 * 2 * 5 * 16 * 16
    assert [layer.forward_flops for layer in layers[:2]] == [linear, linear]
    assert layers[2].forward_flops == 2 * (2 * 2 * 5 * 5 * 16)
    assert [a.name for a in layers[2].parameters] == ["position"]


def test_batch_statistics_depend_on_how_the_layer_is_set() -> None:
    def found(norm: nn.Module) -> bool:
        return profile(norm, meta(4, 3)).layers[0].batch_statistics

    assert found(nn.BatchNorm1d(3))
    assert not found(nn.BatchNorm1d(3).eval())
    assert found(nn.BatchNorm1d(3, track_running_stats=False).eval())
    assert not found(nn.LayerNorm(3))


class Looks(nn.Module):
    """Looks at values, which the meta device has not."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_a_model_that_looks_at_values_is_run_on_zeros() -> None:
    assert profile(Looks(), meta(4, 3)).output_shapes == ((4, 3),)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((4, 3, 8, 8), r"Layer '3', Linear\(.*\), was given \(4, 288\) and says: mat1 and mat2"),
        ((4, 1, 8, 8), r"batch of shape \(4, 1, 8, 8\). Layer '0', Conv2d.*expected.* 3 channels"),
    ],
)
def test_a_refusal_names_the_layer(shape: tuple[int, ...], says: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(99, 5))
    with pytest.raises(PlanError, match=says):
        profile(net, meta(*shape))


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    profile(net, meta(4, 3))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not net[0]._forward_hooks
