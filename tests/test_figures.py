"""Figures: columns of equal length, one meaning per colour, one replacement per change."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from bokeh.core.enums import MarkerType
from fake_comparison import ROWS, FakeComparison, row

from workbench.mesh import AXES
from workbench.strategies.notation import parse
from workbench.sweep import candidates
from workbench.ui import figures, look, stills, texts
from workbench.ui.accuracy_figure import accuracy_chart, accuracy_columns
from workbench.ui.figure_table import data_table


def test_speedup_columns_are_sorted_by_cores_and_mark_the_all_threads_baseline():
    columns = figures.speedup_columns([ROWS[2], ROWS[1], ROWS[0]])
    assert columns["cores"] == [1, 2, 2]
    marked = [y for y in columns["all_threads"] if not math.isnan(y)]
    assert marked == [pytest.approx(1.6)]
    assert columns["text"].count("") == 1
    assert "data=2 2.00×" in columns["text"]


def test_of_many_strategies_on_as_many_cores_the_fastest_are_named_one_above_the_other():
    steps_s = (0.05, 0.04, 0.06, 0.07, 0.045)
    rows = [ROWS[0], *(row(f"{axis}=2", 2, 1, s) for axis, s in zip(AXES, steps_s, strict=False))]
    columns = figures.speedup_columns(rows)
    named = {text: y for text, y in zip(columns["text"], columns["text_y"], strict=True) if text}
    assert list(named) == ["serial", "data=2 1.60×", "sharded=2 2.00×", "channel=2 1.78×"]
    assert named["sharded=2 2.00×"] < named["channel=2 1.78×"] < named["data=2 1.60×"] < 0
    assert len({at for at in columns["text_at"][1:]}) == 1  # above the tallest whisker


@pytest.mark.parametrize(
    ("threads_speedup", "clear"),
    [(1.1, 1.1), (0.5, 0.88), (1.6, 0.88)],
    ids=["in the way", "below", "far above"],
)
def test_names_are_not_written_over_the_point_of_all_threads(threads_speedup, clear):
    at = {"speedup": threads_speedup, "speedup_min": threads_speedup}
    rows = [ROWS[0], row("serial", 1, 2, 0.05, **at, speedup_max=threads_speedup)]
    columns = figures.speedup_columns([*rows, row("data=2", 2, 1, 0.1)])
    assert columns["text"][-1] == "data=2 0.80×"
    assert columns["text_at"][-1] == pytest.approx(clear)


def test_a_row_without_a_speedup_is_not_drawn():
    assert figures.speedup_columns([row("data=2", 2, 1, 0.04, speedup=None)])["cores"] == []


def test_bars_add_up_to_the_time_of_a_step():
    columns = figures.share_columns(ROWS)
    for n, measured in enumerate(ROWS):
        parts = sum(columns[span.kind][n] for span in look.SPANS)
        assert parts == pytest.approx(measured["step_s"] * 1e3)


def test_loss_curves_are_thinned_but_keep_both_ends():
    times = [float(n) for n in range(10_000)]
    curve = figures.Curve("serial, 1 thread", look.SERIAL, times, times)
    columns = figures.loss_columns([curve])
    assert len(columns["time_s"][0]) == figures.MAX_POINTS
    assert (columns["time_s"][0][0], columns["time_s"][0][-1]) == (0.0, 9999.0)


def test_runs_of_the_proof_are_no_curves():
    comparison = FakeComparison()
    comparison.go_on()
    comparison.runs[0].work = "the same in float64"
    assert len(figures.curves_of(comparison)) == 2


@pytest.mark.parametrize(
    ("chart", "columns"),
    [
        (figures.speedup_chart, lambda: figures.speedup_columns(ROWS)),
        (figures.share_chart, lambda: figures.share_columns(ROWS)),
        (
            figures.loss_chart,
            lambda: figures.loss_columns([figures.Curve("a", look.SERIAL, [1.0], [2.0])]),
        ),
    ],
)
def test_a_chart_says_something_when_empty_and_sends_only_news(chart, columns):
    made, data = chart(), columns()
    replaced = []
    made.source.on_change("data", lambda attr, old, new: replaced.append(attr))
    assert made.empty.visible
    assert made.empty.text.startswith("Press Run")
    assert set(made.source.data) == set(data)
    assert made.draw(data)
    assert not made.draw(columns())
    assert replaced == ["data"]
    assert not made.empty.visible
    assert len({len(column) for column in data.values()}) == 1


def test_every_figure_says_measured_and_names_its_axes():
    for chart in (figures.speedup_chart(), figures.loss_chart(), figures.share_chart()):
        assert "Measured" in chart.figure.title.text
        assert "better" in chart.figure.title.text
        assert chart.figure.xaxis[0].axis_label


def test_each_axis_has_a_look_of_its_own():
    looks = [look.style({"strategy": f"{axis}=2", "threads": 1}) for axis in AXES]
    assert len({(style.color, style.marker) for style in looks}) == len(AXES)
    assert len({style.marker for style in looks}) == len(AXES)
    assert len({span.hatch for span in look.SPANS}) == len(look.SPANS)


def test_degrees_of_one_axis_differ_in_dash_and_marker():
    for axis in AXES:
        of = [look.style({"strategy": f"{axis}={n}", "threads": 1}) for n in (2, 3, 4, 8)]
        assert len({(style.color, style.marker) for style in of}) == 1
        assert len({style.dash for style in of}) == 4
        assert len({style.fill for style in of}) == 3
    assert look.style({"strategy": "data", "threads": 1}) is look.OF_AXIS["data"]
    curves = [
        figures.Curve(name, look.style({"strategy": name, "threads": 1}), [1.0], [2.0])
        for name in ("data=2", "data=4")
    ]
    columns = figures.loss_columns(curves)
    assert columns["dash"] == ["solid", "dotted"]
    assert columns["fill"] == [1.0, 0.0]
    rows = [ROWS[0], row("data=2", 2, 1, 0.04), row("data=4", 4, 1, 0.03)]
    assert figures.speedup_columns(rows)["fill"] == [1.0, 1.0, 0.0]


def look_of(strategy):
    return look.style({"strategy": strategy, "threads": 1})


def test_products_of_axes_are_orange_and_each_has_a_look_of_its_own():
    pairs = {
        pair: look_of(",".join(f"{axis}=2" for axis in pair)) for pair in combinations(AXES, 2)
    }
    assert {style.color for style in pairs.values()} == {look.HYBRID.color}
    taken = [style.marker for style in (*pairs.values(), *look.OF_AXIS.values(), look.SERIAL)]
    assert len(set(taken)) == len(taken)
    assert look_of("tensor=2,data=2") == pairs["data", "tensor"]
    assert look_of("data,tensor") == pairs["data", "tensor"]  # a law
    for degrees in ((4, 2), (2, 4), (4, 4)):
        other = look_of("data={},tensor={}".format(*degrees))
        assert other.marker == pairs["data", "tensor"].marker
        assert other.dash not in {pairs["data", "tensor"].dash, "solid"}
    three = look_of("data=2,pipeline=2,tensor=2")
    assert three.marker == pairs["data", "pipeline"].marker
    assert (three.dash, three.fill) != (pairs["data", "pipeline"].dash, 0.25)
    assert look_of("rows=2") == look_of("rows=2,data=2") == look.HYBRID  # somebody's own


@pytest.mark.parametrize("workers", [4, 8])
def test_no_two_strategies_of_a_sweep_look_alike_on_as_many_ranks(workers):
    rows = [(parse(name).size, look_of(name)) for name in candidates(workers)[1:]]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("marker", look.OF_PAIR.values())
def test_bokeh_has_every_marker(marker):
    assert marker in MarkerType


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (ROWS, {"ideal", "1 process × all threads", "Amdahl's law"}),
        (ROWS[:2], {"ideal", "1 process × all threads"}),
        ([ROWS[0], row("data=2", 2, 1, 0.1)], {"ideal"}),  # slower: the law has nothing to say
    ],
)
def test_the_legend_names_what_is_drawn_and_nothing_else(rows, named):
    chart = figures.speedup_chart()
    chart.draw(figures.speedup_columns(ROWS))
    chart.draw(figures.speedup_columns(rows))
    [legend] = chart.figure.legend
    assert {item.label.value for item in legend.items if item.visible} == named
    still = FakeComparison()
    still.rows = rows
    drawn = stills.svg(still, ["speedup"])
    assert ("1 process × all threads" in drawn) == ("1 process × all threads" in named)
    assert ("Amdahl" in drawn) == ("Amdahl's law" in named)


@pytest.mark.parametrize(("known", "state"), [(True, "yes"), (False, "no"), (None, "unknown")])
def test_the_badge_follows_the_proof(known, state):
    found, sentence = texts.badge([ROWS[0], row("data=2", 2, 1, 0.04, same_result=known)])
    assert found == state
    assert ("NOT" in sentence) == (state == "no")


def test_numbers_are_written_with_their_units():
    assert texts.milliseconds(0.0413) == "41.3 ms"
    assert texts.time_left(0.2) == "about 1 s left"
    assert texts.time_left(600) == "about 10 min left"
    assert texts.placement(2, 1, "cpu") == "2 workers × 1 thread each, CPU"


def test_the_speedup_figure_has_the_law_of_every_strategy_over_its_degrees():
    rows = [*ROWS, row("data=4", 4, 1, 0.03), row("tensor=2", 2, 1, 0.05)]
    columns = figures.speedup_columns(rows)
    drawn = [n for n, xs in enumerate(columns["law_x"]) if xs]
    assert [columns["label"][n] for n in drawn] == ["data=4"]
    [n] = drawn
    assert columns["law_text"][n] == "data, 12 % serial"
    assert (columns["law_x"][n][0], columns["law_y"][n][0]) == (1, 1)
    assert columns["law_x"][n][-1] == columns["law_end"][n] > 4
    assert columns["law_y"][n][-1] == columns["law_top"][n]


def test_accuracy_is_a_line_of_batches_and_a_marker_of_test_data():
    history = [{"time_s": 0.5, "accuracy": 0.25}, {"time_s": 1.0}, {"time_s": 1.5, "accuracy": 0.5}]
    batches = figures.batches_of(history, begins_s=1.0)
    assert batches == [(1.5, 0.25), (2.5, 0.5)]
    going = figures.Curve(
        "data=2", look.OF_AXIS["data"], [1.5, 2.0, 2.5], [3.0] * 3, (), None, batches
    )
    ended = figures.Curve("serial", look.SERIAL, [4.0], [1.0], (), 0.75)
    neither = figures.Curve("tensor=2", look.OF_AXIS["tensor"], [4.0], [1.0])
    columns = accuracy_columns([going, ended, neither])
    assert columns["label"] == ["data=2", "serial"]
    assert columns["time_s"] == [[1.5, 2.5], []]
    assert columns["batch_accuracy"] == [[25.0, 50.0], []]
    assert columns["end_batch"][0] == 50.0
    assert math.isnan(columns["end_batch"][1])
    assert math.isnan(columns["accuracy"][0])
    assert columns["accuracy"][1] == 75.0
    assert "–" in data_table("accuracy", columns)
    assert accuracy_chart().draw(columns)
