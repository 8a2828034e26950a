"""Labels through whole models: layers that declare theirs, and a user's code between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from tracking_fakes import SPACE, X, carrier_of, conv, labels, layer, meta, traced

from workbench.profile import profile
from workbench.traced import Flat


@pytest.fixture(autouse=True)
def _fake_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tracking.calls._carrier_of", carrier_of)


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
