"""The picture of one layer: who owns what, what is fetched of whom, in the plan's bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from test_operator_networks import network

from workbench.errors import PlanError
from workbench.plan import Plan, in_binary_units
from workbench.planning import plan
from workbench.ui.language import speaking
from workbench.ui.layer_picture import RANKS, picture
from workbench.ui.plan_view import PlanView

NAMES = {"rank", "KiB", "reflect", "spatial", "channel", "weight"}


def drawn(strategy: str, layer: str | None = None, name: str = "unet") -> tuple[Plan, str, str]:
    found = plan(network(name), strategy)
    shown = picture(found, layer)
    ElementTree.fromstring(shown.svg)  # well formed
    assert shown._repr_html_() == shown.svg
    return found, shown.svg, repr(shown)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_halo_is_hatched_in_the_colour_of_its_owner(ranks: int) -> None:
    found, svg, text = drawn(f"spatial={ranks}", "down1.0")
    for rank in range(ranks):
        assert f"rank {rank} owns" in text
        assert f'fill="{RANKS[rank]}"' in svg
    # Every inner edge has a halo on both sides.
    assert len(re.findall(r'fill="url\(#wb-hatch', svg)) == 2 * (ranks - 1)
    assert "3 rows, stride 1, padding 1 (reflect)" in text
    assert found.ranks == ranks


@pytest.mark.parametrize("strategy", ["spatial=2", "data=2,spatial=2"])
def test_the_bytes_are_those_of_the_plan(strategy: str) -> None:
    found, _, text = drawn(strategy, "down1.0")
    (halo,) = [c for c in found.collectives if c.name == "down1.0: halo"]
    assert f"fetches {in_binary_units(found.sent_by(halo, 1))} of rank 1" in text


def test_a_grid_fetches_corners() -> None:
    _, svg, text = drawn("spatial=2x2", "down1.3")
    assert text.count("owns") == 4
    (first,) = [line for line in text.splitlines() if "rank 0 owns" in line]
    assert "of rank 1" in first
    assert "of rank 3" in first
    assert svg.count("rank 3") >= 1


@pytest.mark.parametrize(
    ("strategy", "layer", "says"),
    [
        ("spatial=2", "down1.1", "forward: sum: all_reduce (added up for all) over spatial"),
        ("spatial=2", "down1.2", "Every rank computes its share of this layer alone"),
        ("spatial=2", "down1.2", "Nothing is sent for this layer"),
        ("channel=2", "down1.0", "is split in filters"),
        ("tensor=2", "down1.0", "is split in filters"),
        ("serial", None, "is whole on every rank"),
        ("data=2", None, "Every rank computes its share of this layer alone"),
        ("data=2", None, "all_reduce (added up for all) over data"),
    ],
)
def test_layers_without_a_halo_say_what_they_do(
    strategy: str, layer: str | None, says: str
) -> None:
    _, _, text = drawn(strategy, layer)
    assert says in text


def test_an_unknown_layer_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no layer 'down1'; the nearest is 'down"):
        drawn("spatial=2", "down1")


@pytest.mark.parametrize("name", ["volume", "resnet", "vgg"])
def test_every_layer_of_every_network_can_be_drawn(name: str) -> None:
    found = plan(network(name), "spatial=2")
    for planned in found.layers:
        if planned.layer.arguments:
            ElementTree.fromstring(picture(found, planned.layer.name).svg)


@pytest.mark.parametrize(
    ("strategy", "layer", "says"),
    [
        ("spatial=2", "down1.0", "取来"),
        ("spatial=2", "down1.1", "相加"),
        ("channel=2", "down1.0", "按卷积核切分"),
        ("serial", None, "都是完整的"),
    ],
)
def test_pictures_speak_chinese_too(strategy: str, layer: str | None, says: str) -> None:
    with speaking("zh"):
        _, svg, text = drawn(strategy, layer)
    assert says in text
    assert says in svg
    assert not set(re.findall("[A-Za-z]{3,}", text.partition("\n")[2])) - NAMES


def test_the_panel_draws_a_layer_in_its_language_also_when_another_is_chosen() -> None:
    found = plan(network("unet"), "spatial=2")
    with speaking("zh"):
        view = PlanView()
        view.speak()
        view.show((None, found))  # type: ignore[arg-type]
    assert "取来" in view._picture.value
    before, view._layer.value = view._picture.value, "down1.3"
    assert view._picture.value != before
    assert "取来" in view._picture.value


def test_shares_say_whose_they_are_for_the_timeline() -> None:
    _, svg, _ = drawn("data=2,spatial=2", "down1.0")
    halos = re.findall(r'data-wb-ranks="([^"]*)" tabindex="0"[^>]* class="wb-halo"', svg)
    assert halos == ["0 2", "1 3"]
    parts = re.findall(r'data-wb-ranks="([^"]*)" tabindex="0" data-wb-array="(.*?)"', svg)
    assert [ranks for ranks, array in parts if array == "batch"] == ["0", "1", "2", "3"]
    assert [ranks for ranks, array in parts if array == "weight"] == ["0 1 2 3"]
    assert re.findall(r'<svg class="wb-layer" data-wb-layer="(.*?)" role="(.*?)"', svg) == [
        ("down1.0", "group")
    ]
    _, whole, _ = drawn("data=2", "down1.0")
    assert 'data-wb-layer="down1.0" role="group"' in whole
