"""The picture of the cut against the plan: every part, its ranks, its size, and what travels."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from xml.etree import ElementTree

import numpy as np
import pytest
from rank_threads import run_on_threads
from test_operator_networks import network
from test_own_strategy import COLUMNS
from torch import nn

from workbench import strategies
from workbench.mesh import balanced
from workbench.plan import Plan
from workbench.planning import plan
from workbench.strategies import OPTIONS, STRATEGIES, register_strategy
from workbench.ui.collective_names import tail_of, travels_of, whole_name
from workbench.ui.cut_table import cut_columns
from workbench.ui.language import speaking
from workbench.ui.layer_arrays import arrays_of, ranks_of
from workbench.ui.layer_panels import numbered
from workbench.ui.layer_picture import number_of, picture
from workbench.workload import Workload

HYBRIDS = (
    *("data=2,spatial=2", "data=2,tensor=2", "pipeline=2,data=2", "sharded=2,tensor=2"),
    *("data=3,channel=2", "pipeline=2,tensor=2", "sharded=2,spatial=2", "data=2,sharded=2"),
)
ALL = (*(f"{axis}={degree}" for axis in STRATEGIES for degree in (2, 3)), *HYBRIDS)


def images() -> Workload:
    """Return convolutions, a norm and linear layers whose sizes do not divide."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 5 * 4, 11),
        nn.ReLU(),
        nn.Linear(11, 3),
    )
    x = np.random.default_rng(0).standard_normal((14, 3, 11, 9)).astype(np.float32)
    return Workload(model=model, data=(x, np.arange(14) % 3), batch_size=7)


def drawn(svg: str) -> dict[str, list[tuple[tuple[int, ...], list[list[range]], float]]]:
    """Return by kind of array each part: its ranks, its runs along each dim, its pixels."""
    found = defaultdict(list)
    for each in ElementTree.fromstring(svg).iter():
        if "data-wb-array" not in each.attrib:
            continue
        ranks = tuple(map(int, each.get("data-wb-ranks").split()))
        runs = [
            [range(*map(int, run.split(":"))) for run in along.split(",")]
            for along in each.get("data-wb-runs").split()
        ]
        boxes = {
            (child.get("x"), child.get("y"), child.get("width"), child.get("height"))
            for child in each.findall("rect")
            if child.get("stroke") is not None
        }
        area = sum(float(width) * float(height) for _, _, width, height in boxes)
        found[each.get("data-wb-array")].append((ranks, runs, area))
    return found


def mask(shape: tuple[int, ...], runs: list[list[range]]) -> np.ndarray:
    found = np.zeros(shape, int)
    found[np.ix_(*([i for run in along for i in run] for along in runs))] = 1
    return found


@pytest.mark.parametrize("strategy", ALL)
def test_the_parts_drawn_are_those_of_the_plan(strategy: str) -> None:
    found = plan(images(), strategy)
    names = dict.fromkeys(planned.layer.name for planned in found.layers)
    for name in names:
        number = number_of(found, name)
        shown = {array.kind: array for array in arrays_of(found, number)}
        for kind, parts in drawn(picture(found, name).svg).items():
            shape = shown[kind].shape
            whole = sum(mask(shape, runs) for _, runs, _ in parts)
            assert (whole == 1).all(), (name, kind)  # all of it, and nothing twice
            assert len({rank for ranks, _, _ in parts for rank in ranks}) == sum(
                len(ranks) for ranks, _, _ in parts
            )
            pixels = sum(area for _, _, area in parts)
            for ranks, runs, area in parts:
                numel = prod(sum(map(len, along)) for along in runs)
                assert area == pytest.approx(pixels * numel / prod(shape), rel=0.02, abs=2)
                for rank in ranks:
                    assert_held(found, number, shown[kind], rank, runs)
            held = {rank for ranks, _, _ in parts for rank in ranks}
            if kind == "weight":
                assert held == {r for r in range(found.ranks) if found.holds(shown[kind].name, r)}
            else:
                everybody = range(found.ranks) if kind == "batch" else ranks_of(found, number)
                assert held == set(everybody)


def assert_held(found: Plan, number: int, array, rank: int, runs: list[list[range]]) -> None:
    """The plan says the same of a rank, by its own ways."""
    sizes = tuple(sum(map(len, along)) for along in runs)
    if array.kind == "weight":
        (own,) = [each for each in found.arrays if each.name == array.name]
        assert found.owned(own, rank).shape == sizes
        return
    samples = range(*balanced(found.batch.size, found.mesh.replicas, found.mesh.replica(rank)))
    assert runs[0] == [samples]
    planned = found.layers[number]
    cuts = {"batch": found.input, "input": planned.input, "output": planned.output}[array.kind]
    others = [cut for cut in cuts if cut.axis != "data"]
    assert sizes[1:] == tuple(b - a for a, b in found.share(array.shape, others, rank)[1:])


@pytest.mark.parametrize("strategy", ["data=2", "tensor=2", "sharded=2", "pipeline=2,data=2"])
def test_what_ranks_hold_is_what_is_drawn(strategy: str) -> None:
    """Against ranks that have run, not only against the plan."""
    work = images()
    run = run_on_threads(work, strategy, 1)
    layer = number_of(run.plan, "6")
    (weight,) = [each for each in arrays_of(run.plan, layer) if each.kind == "weight"]
    whole = run.state[name := f"parameter:{weight.name}"]
    for part in weight.parts:
        # Of several ranks with the same part the first gives it back.
        kept = run.outlets[part.ranks[0]].kept[name]
        assert (kept == whole[tuple(slice(*own[0]) for own in part.runs)]).all()


@pytest.mark.parametrize("strategy", ALL)
def test_everything_that_travels_in_a_step_is_told_of_some_layer(strategy: str) -> None:
    found = plan(images(), strategy)
    told = defaultdict(list)
    for number, planned in enumerate(found.layers):
        for travel in travels_of(found, number) if planned.layer.arguments else ():
            told[travel.collective].append(travel)
    for moved in found.collectives:
        alone = {"record of the step", "norm of the gradients", "weight of the targets"}
        if moved.phase != "start" and moved.name not in alone and "output: " not in moved.name:
            assert moved in told, moved.name
    for moved, travels in told.items():
        most = max(found.sent_by(moved, rank) for rank in range(found.ranks))
        assert {travel.sent_bytes for travel in travels} == {most}


def test_a_pipeline_says_whose_the_layer_is_and_what_is_sent_on() -> None:
    found = plan(images(), "pipeline=2,data=2")
    calls = [n for n, planned in enumerate(found.layers) if planned.layer.arguments]
    last = max(n for n in calls if ranks_of(found, n) == (0, 2))
    assert ranks_of(found, last + 1) == (1, 3)
    text = repr(picture(found, found.layers[last].layer.name))
    assert "Stage 0 of the 2 of the pipeline, counted from 0, computes it: ranks 0, 2." in text
    assert "whole on every rank" not in text
    message = next(c for c in found.collectives if c.name.startswith("stage 1: result"))
    assert max(found.sent_by(message, rank) for rank in range(4)) > 0
    assert f"• forward: {message.name}: exchange" in text
    following = repr(picture(found, found.layers[last + 1].layer.name))
    assert "Stage 1 of the 2 of the pipeline, counted from 0, computes it: ranks 1, 3." in following
    assert f"• forward: {message.name}: exchange" in following


def test_a_sharded_layer_gathers_its_parameters_and_adds_up_gradients() -> None:
    text = repr(picture(plan(images(), "sharded=2"), "6"))
    assert "keeps only its part of the parameters" in text
    for said in (
        "• forward: parameters: all_gather (all parts to all) over sharded",
        "• backward: parameters again: all_gather",
        "• backward: gradients: reduce_scatter",
    ):
        assert said in text
    assert "adds up what" not in text


def test_stage_one_of_sharded_says_who_updates_what() -> None:
    found = plan(images(), "sharded=2", stage="1")
    shown = {array.kind: array for array in arrays_of(found, number_of(found, "6"))}
    assert [part.ranks for part in shown["weight"].parts] == [(0, 1)]
    assert [(part.ranks, part.runs[0]) for part in shown["state"].parts] == [
        ((0,), ((0, 6),)),
        ((1,), ((6, 11),)),
    ]
    text = repr(picture(found, "6"))
    assert "updates only a part" in text
    assert "• update: updated parameters (with" in text
    assert any("Updated of" in cell for cell in cut_columns(found, "6")["array"])


def test_ranks_are_named_by_their_true_numbers() -> None:
    text = repr(picture(plan(network("unet"), "data=2,spatial=2"), "down1.0"))
    assert "rank 0 owns" in text
    assert "rank 1 owns" in text
    assert "ranks 2, 3 do the same" in text
    assert "What the layer reads: samples 0–1 × height 0–9: rank 0" in text
    assert "Its weight: whole: ranks 0–3" in text


def test_halo_bytes_of_every_hybrid_are_those_of_the_plan() -> None:
    for strategy in ("sharded=2,spatial=2", "channel=2,spatial=2", "spatial=2x2"):
        found = plan(network("unet"), strategy)
        name = next(c.name for c in found.collectives if c.name.endswith(": halo"))
        text = repr(picture(found, name.removesuffix(": halo")))
        assert text.count(" owns ") == found.mesh.degree("spatial")


def test_a_strategy_of_a_users_own_is_drawn_too() -> None:
    before = dict(STRATEGIES), dict(OPTIONS)
    try:
        register_strategy(COLUMNS)
        svg = picture(plan(images(), "data=2,columns=2"), "6").svg
    finally:
        for table, kept in zip((strategies._offered, strategies._options), before, strict=True):
            table.clear()
            table.update(kept)
    weight = {ranks: runs[0] for ranks, runs, _ in drawn(svg)["weight"]}
    assert weight == {(0, 2): [range(6)], (1, 3): [range(6, 11)]}
    assert "all_gather (all parts to all) over columns" in svg


def test_attention_is_drawn_by_heads() -> None:
    model = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, dropout=0.0)
    x = np.random.default_rng(0).standard_normal((8, 5, 12)).astype(np.float32)
    work = Workload(model=model, data=(x, x), batch_size=4, loss=nn.MSELoss())
    found = plan(work, "tensor=2")
    svg = picture(found, "self_attn").svg
    weight = {ranks: runs[0] for ranks, runs, _ in drawn(svg)["weight"]}
    assert weight == {  # queries, keys and values of each head
        (0,): [range(8), range(12, 20), range(24, 32)],
        (1,): [range(8, 12), range(20, 24), range(32, 36)],
    }


def test_many_pieces_are_drawn_together_and_still_to_scale() -> None:
    model = nn.Sequential(nn.Conv2d(1, 40, 3, padding=1), nn.Flatten(), nn.Linear(40 * 36, 3))
    x = np.random.default_rng(0).standard_normal((6, 1, 6, 6)).astype(np.float32)
    found = plan(Workload(model=model, data=(x, np.arange(6) % 3), batch_size=6), "spatial=2")
    svg = picture(found, "2").svg
    if "Many pieces" in svg:
        parts = drawn(svg)["input"]
        assert parts[0][2] == pytest.approx(parts[1][2], rel=0.02)


def test_the_table_has_every_part_in_words() -> None:
    columns = cut_columns(plan(images(), "tensor=2"), "6")
    rows = list(zip(*(columns[name] for name in ("array", "part", "ranks", "kept")), strict=True))
    assert ("Its weight", "outputs 0–5 × inputs 0–139", "rank 0", "3.3 KiB") in rows
    assert {len(column) for column in columns.values()} == {len(rows)}
    assert cut_columns(plan(images(), "serial"))["array"] == []


@pytest.mark.parametrize(
    ("ranks", "written"),
    [((0,), "0"), ((2, 0), "0, 2"), ((0, 1, 2, 3, 8), "0–3, 8"), ((0, 1, 5), "0, 1, 5")],
)
def test_numbers_of_ranks_are_short(ranks, written) -> None:
    assert numbered(ranks) == written


def test_the_picture_says_in_words_what_it_shows() -> None:
    root = ElementTree.fromstring(picture(plan(images(), "data=2"), "6").svg)
    assert root.get("role") == "group"
    assert "Its weight: whole: ranks 0, 1" in root.findtext("desc")
    parts = [each for each in root.iter() if "data-wb-array" in each.attrib]
    assert all(part.get("role") == "img" and part.findtext("title") for part in parts)
    assert all(part.get("tabindex") == "0" for part in parts)
    sizes = {int(each.get("font-size")) for each in root.iter() if each.get("font-size")}
    assert min(sizes) >= 15


def test_names_of_collectives_are_chinese_but_for_layers() -> None:
    names = {
        moved.name
        for strategy in ("pipeline=2,data=2", "sharded=2,tensor=2", "spatial=2", "channel=2")
        for moved in plan(images(), strategy).collectives
        if moved.phase != "start"
    }
    names |= {
        "gradients, bucket 3, in bf16",
        "fc: gradient of sum",
        "a.b: gradient of the whole input",
    }
    with speaking("zh"):
        for name in names:
            for said in (tail_of(name), whole_name(name)):
                assert any("一" <= sign <= "鿿" for sign in said), (name, said)
    assert whole_name("fc: whole output") == "fc: whole output"
