"""Code that is watched while a model computes: opaque modules, hooks, gradients, writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tracking_fakes import SPACE, Model, X, carrier_of, conv, labels, layer, meta, traced

from workbench.profile import profile


@pytest.fixture(autouse=True)
def _fake_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tracking.calls._carrier_of", carrier_of)


def test_opaque_modules_are_one_layer() -> None:
    block = nn.Sequential(conv(), nn.BatchNorm2d(4), Model(lambda m, x: x - x.mean()))
    net = nn.Sequential(conv(3, 3), block, conv(4), nn.Flatten())
    assert [mix.layer for mix in profile(net, X).mixes] == ["1.2"]
    found = profile(net, X, opaque=frozenset({"1"}))
    assert found.mixes == ()
    assert [(each.name, each.role) for each in found.layers] == [
        ("0", "conv"),
        ("1", "opaque"),
        ("2", "conv"),
        ("3", "flatten"),
    ]
    whole = layer(found, "1")
    assert [p.name for p in whole.parameters] == [
        "1.0.weight",
        "1.0.bias",
        "1.1.weight",
        "1.1.bias",
    ]
    assert [b.name for b in whole.buffers] == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    assert whole.forward_flops == 2 * 2 * 4 * 16 * 12 * 27
    assert whole.batch_statistics
    assert whole.results[0].labels == ("", "", *SPACE)
    assert sum(each.forward_flops for each in profile(net, X).layers) == sum(
        each.forward_flops for each in found.layers
    )


def test_an_opaque_module_that_changes_sizes_gives_whole_arrays() -> None:
    net = nn.Sequential(Model(lambda m, x: F.max_pool2d(x, 2)), conv())
    found = profile(net, X, opaque=frozenset({"0"}))
    assert found.mixes == ()
    assert layer(found, "0").results[0].labels == ("", "", "", "")
    assert labels(found) == ("", "out:1", "", "")
    whole = profile(net, X, opaque=frozenset({""}))
    assert [each.role for each in whole.layers] == ["opaque"]


def test_a_second_labelled_array_that_a_layer_says_nothing_of_is_a_mix() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x

    def known(module: nn.Module) -> Any:
        return carrier_of(nn.Identity() if isinstance(module, Two) else module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.tracking.calls._carrier_of", known)
        (mix,) = traced(lambda m, x: m.two(x, x), two=Two()).mixes
    assert (mix.labels, mix.operation) == (SPACE, "Two of a second array that is cut")


def test_gradients_are_those_that_flow() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.unused(x)
        with torch.no_grad():
            still = m.still(x)
        return m.b(F.relu(m.a(x))) + m.cut(m.a(x)).detach() + still

    layers = {name: conv(3, 3) for name in ("unused", "still", "a", "b", "cut")}
    for grad in (False, True):
        found = traced(forward, X.clone().requires_grad_(grad), **layers)
        assert found.inputs[0].gradient == grad
        assert [
            (each.name, each.arguments[0].gradient, each.results[0].gradient)
            for each in found.layers
        ] == [
            ("unused", False, False),
            ("still", False, False),
            ("a", grad, True),
            ("b", True, True),
            ("a", False, False),
            ("cut", False, False),
        ]
        assert found.outputs[0].gradient


def test_frozen_layers_pass_no_gradient_on() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), conv(4))
    net[0].requires_grad_(False)
    found = profile(net, X)
    assert [each.arguments[0].gradient for each in found.layers] == [False] * 3
    assert [each.results[0].gradient for each in found.layers] == [False, False, True]


def test_a_users_hook_on_a_layer_is_watched() -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    net[0].register_forward_hook(lambda module, args, output: output - output.mean((2, 3), True))
    net[0].register_forward_pre_hook(lambda module, args: (args[0].flip(2),))
    found = profile(net, X)
    assert [mix.operation for mix in found.mixes] == ["flip over dim 2", "mean over dims 2 and 3"]


def test_numbers_of_a_size_are_found_behind_layers_that_do_not_fit_another() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, rows: int) -> Tensor:
            return x / rows**0.5

    found = traced(
        lambda m, x: m.scaled(m.linear(m.flat(x)), x.shape[3]),
        flat=nn.Flatten(),
        linear=nn.Linear(576, 5),
        scaled=Scaled(),
    )
    (mix,) = found.mixes
    assert (mix.layer, mix.kind, mix.labels) == ("scaled", "Scaled", ("dim3",))
    assert mix.operation == "/ with a number computed from the size of dim 3"


def test_code_in_inference_mode_and_own_functions_are_watched() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * 2

    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            scale = torch.einsum("ij,j->i", m.weight, m.weight[0]).clone()
            bad = F.linear(x, m.weight.new_ones(2, 12))
        return Twice.apply(m.a(x)) * scale.sum() + bad.sum()

    found = traced(forward, a=conv(), weight=nn.Parameter(torch.ones(4, 4)))
    assert labels(found) == ("", "out:a", *SPACE)
    own, others = [], []
    for mix in found.mixes:
        (own if mix.operation.startswith("Twice, an autograd.Function") else others).append(mix)
    assert {"dim3", "dim2"} == {label for mix in others for label in mix.labels}
    assert [mix.labels for mix in own] == [("out:a", *SPACE)]


def test_what_is_written_into_a_part_counts() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x.new_zeros(2, 4, 16, 12)
        y[:, :3] = x
        return m.a(y)

    (mix,) = traced(forward, a=conv(4)).mixes
    assert mix.operation.startswith("copy, written into a part")
    assert mix.labels == SPACE


def test_two_images_cut_along_different_dims_do_not_meet() -> None:
    found = traced(lambda m, x: m.a(x) + m.a(x).transpose(2, 3), meta(2, 3, 8, 8), a=conv())
    (mix,) = found.mixes
    assert mix.labels == SPACE


def test_dims_of_size_one_broadcast() -> None:
    found = traced(
        lambda m, x: m.a(x) * x[:, :1] + m.bias[:, None, None],
        a=conv(3, 4),
        bias=nn.Parameter(torch.zeros(1)),
    )
    assert found.mixes == ()
    stretched = traced(lambda m, x, y: x * y, meta(2, 3, 1, 12), meta(2, 3, 16, 12))
    assert [mix.labels for mix in stretched.mixes] == [("dim2",)]


def test_the_model_and_the_inputs_are_left_as_they_were() -> None:
    model, x = nn.Sequential(conv(), nn.ReLU()), torch.ones(2, 3, 8, 8)
    profile(model, x)
    assert "forward" not in model[0].__dict__
    assert not hasattr(x, "_workbench_tags")
    assert not model[0]._forward_hooks
