"""Labels through whole models: layers that declare theirs, and a user's code between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from tracking_fakes import carrier_of

from workbench.profile import Profile, profile
from workbench.traced import Flat, Layer


@pytest.fixture(autouse=True)
def _fake_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tracking.calls._carrier_of", carrier_of)


class Model(nn.Module):
    """A forward in one line, over some layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *x: Tensor) -> Any:
        return self.function(self, *x)


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


X = meta(2, 3, 16, 12)
SPACE = ("dim2", "dim3")


def traced(function: Callable[..., Any], *x: Tensor, how: Any = None, **layers: Any) -> Profile:
    return profile(Model(function, **layers), *(x or (X,)), **(how or {}))


def layer(found: Profile, name: str, call: int = 0) -> Layer:
    return [each for each in found.layers if each.name == name][call]


def conv(into: int = 3, out: int = 4, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1, **how)


def labels(found: Profile) -> tuple[Any, ...]:
    return found.outputs[0].labels


def test_layers_and_the_code_between_them_hand_labels_on() -> None:
    net = nn.Sequential(
        conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
    )
    found = profile(net, X)
    assert found.mixes == ()
    assert [each.arguments[0].labels for each in found.layers[:2]] == [
        ("", "", *SPACE),
        ("", "out:0", *SPACE),
    ]
    assert found.layers[3].results[0].labels == ("", "out:0", *SPACE)
    assert found.layers[3].results[0].shape == (2, 4, 8, 6)
    assert labels(found) == ("", "out:0", "", "")
    assert found.inputs[0].labels == ("", "", *SPACE)


def test_outputs_that_are_added_up_are_one_label_everywhere() -> None:
    found = traced(
        lambda m, x: m.norm(m.c(F.relu(m.a(x)) + m.b(x))) + m.a(x),
        a=conv(),
        b=conv(),
        c=conv(4),
        norm=nn.BatchNorm2d(4),
    )
    assert found.mixes == ()
    names = {each.results[0].labels[1] for each in found.layers}
    assert len(names) == 1
    assert layer(found, "c").refusals[0].labels == tuple(names)
    assert layer(found, "norm").sums[0].labels == (*names, *SPACE)


def test_dense_blocks_join_channels_and_keep_the_image_cut() -> None:
    found = traced(
        lambda m, x: m.b(torch.cat([x, F.relu(m.a(x))], 1)) + m.a(x), a=conv(), b=conv(7)
    )
    assert labels(found)[2:] == SPACE
    (mix,) = found.mixes
    assert (mix.operation, mix.labels) == ("cat along dim 1", ("out:a",))


def test_a_unet_is_let_pass_whatever_sizes_its_layers_have() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        low = m.down(F.relu(m.a(x)))
        return m.out(m.up(m.b(low)) + m.a(x))

    found = traced(
        forward,
        a=conv(),
        b=conv(4),
        down=nn.MaxPool2d(2),
        up=nn.Upsample(size=(16, 12)),
        out=conv(4, 2),
    )
    assert found.mixes == ()
    assert labels(found) == ("", "out:out", *SPACE)


def test_squeeze_and_excitation_multiplies_by_a_whole_array() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        gate = m.up(F.relu(m.down(m.pool(x)))).sigmoid()
        return x * gate + x * gate.expand_as(x)

    found = traced(
        forward,
        a=conv(),
        pool=nn.AdaptiveAvgPool2d(1),
        down=nn.Conv2d(4, 2, 1),
        up=nn.Conv2d(2, 4, 1),
    )
    assert found.mixes == ()
    assert labels(found) == ("", "out:a", *SPACE)
    assert layer(found, "down").arguments[0].labels == ("", "out:a", "", "")


def test_channels_last_blocks_keep_their_rows() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.a(x).permute(0, 2, 3, 1))
        return m.down(F.gelu(m.up(y))).permute(0, 3, 1, 2)

    found = traced(
        forward, a=conv(), norm=nn.LayerNorm(4), up=nn.Linear(4, 16), down=nn.Linear(16, 4)
    )
    assert found.mixes == ()
    assert layer(found, "up").arguments[0].labels == ("", *SPACE, "out:a")
    assert labels(found) == ("", "out:down", *SPACE)


def test_flattened_dims_know_their_parts_under_their_final_names() -> None:
    found = traced(
        lambda m, x: m.linear(F.relu(m.flat(m.a(x) + m.b(x)))),
        a=conv(),
        b=conv(),
        flat=nn.Flatten(),
        linear=nn.Linear(4 * 16 * 12, 5),
    )
    flat = Flat((("out:a", 4), ("dim2", 16), ("dim3", 12)))
    assert found.mixes == ()
    assert layer(found, "linear").arguments[0].labels == ("", flat)
    assert layer(found, "linear").role == "linear"
    assert labels(found) == ("", "out:linear")


def test_a_flattened_dim_that_is_mixed_is_reported_as_such() -> None:
    found = traced(lambda m, x: m.flat(x).mean(1), flat=nn.Flatten())
    (mix,) = found.mixes
    assert mix.operation == "mean over dim 1"
    assert mix.labels == (Flat((("", 3), ("dim2", 16), ("dim3", 12))),)


def test_a_view_that_flattens_is_reported_where_a_layer_reads_it() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.flatten(x, 1)

    found = traced(
        lambda m, x: m.linear(F.relu(m.inner(x))), inner=Inner(), linear=nn.Linear(576, 5)
    )
    (mix,) = found.mixes
    assert (mix.layer, mix.kind, mix.operation) == ("inner", "Inner", "flatten to (2, 576)")
    assert mix.advice == "use nn.Flatten"
    assert layer(found, "linear").arguments[0].labels == ("", "")
    assert labels(found) == ("", "out:linear")
    assert [m.operation for m in traced(lambda m, x: x.flatten(2)).mixes] == [
        "flatten to (2, 3, 192)"
    ]


def test_a_mix_names_the_innermost_module_once() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.ones(3, 1, 3, 3, device=x.device), padding=1, groups=3)

    found = profile(nn.Sequential(nn.Sequential(Block()), nn.ReLU(), nn.Identity()), X)
    (mix,) = found.mixes
    assert (mix.layer, mix.kind, mix.operation) == ("0.0", "Block", "conv2d")
    assert (mix.labels, mix.advice) == (SPACE, "make it an nn.Conv2d")


@pytest.mark.parametrize(
    ("function", "operation", "advice"),
    [
        (lambda m, x: x.mean((2, 3)), "mean over dims 2 and 3", "use nn.AdaptiveAvgPool2d(1)"),
        (lambda m, x: x.amax((3, 2)), "amax over dims 2 and 3", "use nn.AdaptiveMaxPool2d(1)"),
        (lambda m, x: F.interpolate(x, (32, 24)), "interpolate", "make it an nn.Upsample"),
        (lambda m, x: F.max_pool2d(x, 2), "max_pool2d", "make it an nn.MaxPool2d"),
        (lambda m, x: F.softmax(x, 2), "softmax over dim 2", "make it an nn.Softmax"),
        (lambda m, x: x[:, :, 1:], "slicing of dim 2", ""),
    ],
)
def test_a_mix_says_what_to_write_instead(
    function: Callable[..., Any], operation: str, advice: str
) -> None:
    mix = traced(function).mixes[0]
    assert (mix.operation, mix.advice) == (operation, advice)


def test_one_mix_is_not_held_against_what_follows() -> None:
    found = traced(lambda m, x: F.relu(x - x.mean(2, keepdim=True)) + F.max_pool2d(x, 3, 1, 1))
    assert [mix.operation for mix in found.mixes] == ["mean over dim 2", "max_pool2d"]


def test_a_mix_is_not_held_against_the_layers_that_follow_either() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        high = m.a(x)
        return high + m.up(m.b(F.max_pool2d(high, 2)))

    found = traced(forward, a=conv(), b=conv(4), up=nn.Upsample(scale_factor=2))
    assert [(mix.operation, mix.labels) for mix in found.mixes] == [("max_pool2d", SPACE)]
    assert labels(found) == ("", "out:a", *SPACE)


def test_a_shared_module_is_recorded_at_every_call() -> None:
    found = traced(lambda m, x: m.a(F.relu(m.a(x))), a=conv(3, 3))
    assert [each.arguments[0].labels for each in found.layers] == [
        ("", "", *SPACE),
        ("", "out:a", *SPACE),
    ]


def test_a_weight_normed_layer_is_the_layer_it_was() -> None:
    found = traced(lambda m, x: F.relu(m.a(x)), a=weight_norm(conv()))
    assert layer(found, "a").role == "conv"
    assert labels(found) == ("", "out:a", *SPACE)
    names = [p.name for each in found.layers for p in each.parameters]
    assert sorted(names) == [
        "a.bias",
        "a.parametrizations.weight.original0",
        "a.parametrizations.weight.original1",
    ]


def test_tuples_and_dicts_of_outputs_have_labels() -> None:
    found = traced(lambda m, x: {"a": m.a(x), "b": (x, [x.sum(1)])}, a=conv())
    assert [output.labels for output in found.outputs] == [
        ("", "out:a", *SPACE),
        ("", "", *SPACE),
        ("", *SPACE),
    ]
    assert not found.plain


def test_a_model_that_looks_at_values_is_watched_on_zeros() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x) if m.a.bias.sum().item() == 0 else F.max_pool2d(m.a(x), 2)

    found = traced(forward, torch.zeros(2, 3, 8, 8), a=conv())
    assert [each.name for each in found.layers] == ["a"]
    assert [mix.operation for mix in found.mixes] == ["max_pool2d"]


def test_values_that_code_looks_at_are_the_same_in_arrays_that_are_whole() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.pool(m.a(x))
        return m.a(x) * y.sum().item() if y.sum().item() != 0 else m.a(x)

    found = traced(
        forward, torch.zeros(2, 3, 8, 8), a=nn.Conv2d(3, 1, 1), pool=nn.AdaptiveAvgPool2d(1)
    )
    assert found.mixes == ()


def test_dims_are_those_asked_for() -> None:
    for dims, expected in (
        ((), ("", "", "", "")),
        ((3,), ("", "", "", "dim3")),
        ((-2,), ("", "", "dim2", "")),
        ((1, 2), ("", "dim1", "dim2", "")),
        (None, ("", "", *SPACE)),
    ):
        assert traced(lambda m, x: x, how={"dims": dims}).inputs[0].labels == expected
    assert traced(lambda m, x: x, meta(4, 7)).inputs[0].labels == ("", "")


def test_further_inputs_of_the_same_size_are_cut_alike() -> None:
    found = traced(lambda m, x, y, z: x * y, X, meta(2, 1, 16, 12), meta(2, 3, 16, 6))
    assert [array.labels for array in found.inputs[1:]] == [("", "", *SPACE), ("", "", "dim2", "")]
    assert found.mixes == ()


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
