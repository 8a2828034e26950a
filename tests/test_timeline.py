"""What every rank did when, as a picture of one step and as a trace."""

from __future__ import annotations

import json
from itertools import pairwise
from time import perf_counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS
from workbench.spans import SpanRecorder
from workbench.timeline import (
    WHICH,
    Bar,
    Timeline,
    bars_of,
    recorded,
    step_of,
    steps_in,
    timeline_of,
    trace,
    write_trace,
)
from workbench.ui.figure_table import data_table
from workbench.ui.timeline_figure import timeline_chart, timeline_columns


def span(
    rank: int, step: int, start_s: float, stop_s: float, kind: str = "compute", name: str = ""
):
    times = {"start_s": start_s, "stop_s": stop_s}
    return {"rank": rank, "step": step, "kind": kind, "name": name, "sent_bytes": 8, **times}


STEPS = [
    *(span(0, 0, 10.0, 19.0), span(1, 0, 10.0, 18.0)),  # a slow first step
    *(span(0, 1, 20.0, 21.0), span(0, 1, 21.0, 22.0, "wait", "sum"), span(1, 1, 20.5, 22.0)),
    *(span(0, 2, 30.0, 32.5), span(1, 2, 30.0, 32.0)),
    span(0, 3, 40.0, 41.0),  # the other rank's is lost
]


def test_a_step_counts_that_all_ranks_have_recorded():
    assert steps_in(STEPS) == pytest.approx({0: 9.0, 1: 2.0, 2: 2.5})
    assert step_of(STEPS) == 2
    assert step_of(STEPS, warm_up=1) in (1, 2)
    assert step_of(STEPS, warm_up=99) == 2
    assert step_of([]) is None


def test_a_strategy_and_a_step_of_it_can_be_chosen():
    other = [span(0, n, 10.0 * n, 10.0 * n + 1 + n / 10) for n in range(9)]
    timelines = {"serial, 1 thread": other, "data=2": STEPS, "tensor=2": []}
    assert recorded(timelines) == ("serial, 1 thread", "data=2")
    assert timeline_of(timelines).label == "data=2"
    chosen = {which: timeline_of(timelines, "serial, 1 thread", which) for which in WHICH}
    assert {each.label for each in chosen.values()} == {"serial, 1 thread"}
    warm = [n for n in range(9) if n >= WARM_UP_STEPS]
    assert [chosen[which].step for which in ("fastest", "slowest")] == [warm[0], warm[-1]]
    assert chosen["usual"].step not in (warm[0], warm[-1])
    assert timeline_of(timelines, "gone").label == "data=2"


def test_what_nobody_names_is_overhead():
    recorder = SpanRecorder(enabled=True)
    recorder.begin_step(3, perf_counter() - 1.0)
    with recorder.within("compute"):
        now_s = perf_counter()
        recorder.add("comm", "gradients", now_s, now_s, 8)
    recorder.end_step(perf_counter())
    found = recorder.take()
    assert [span.kind for span in found] == ["overhead", "compute", "comm", "compute", "overhead"]
    assert found[0].stop_s - found[0].start_s >= 1.0
    assert all(one.stop_s == two.start_s for one, two in pairwise(found))


def test_bars_begin_with_the_first_rank():
    bars = bars_of(STEPS, 1)
    assert [(bar.rank, bar.kind, bar.start_s, bar.stop_s) for bar in bars] == [
        (0, "compute", 0.0, 1.0),
        (0, "wait", 1.0, 2.0),
        (1, "compute", 0.5, 2.0),
    ]
    assert bars_of(STEPS, 7) == []


def test_ranks_with_clocks_of_other_machines_begin_together():
    far = [span(0, 0, 10.0, 11.0), span(1, 0, 90_000.5, 90_001.0)]
    assert [(bar.start_s, bar.stop_s) for bar in bars_of(far, 0)] == [(0.0, 1.0), (0.0, 0.5)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["comm", "wait", "optimizer"]), st.floats(0, 1), st.floats(0, 1)),
        max_size=20,
    )
)
def test_a_trace_has_every_span_on_its_rank_and_none_overlaps(pieces):
    rows = []
    for rank in range(2):
        recorder = SpanRecorder(enabled=True)
        now_s = perf_counter()
        recorder.begin_step(0, now_s)
        for kind, pause_s, length_s in pieces:
            recorder.add(kind, kind, now_s + pause_s, now_s + pause_s + length_s, 4)
            now_s += pause_s + length_s
        taken = recorder.take()
        fields = ("step", "kind", "name", "start_s", "stop_s", "sent_bytes")
        rows += [{"rank": rank, **{f: getattr(s, f) for f in fields}} for s in taken]
    made = json.loads(json.dumps(trace({"data=2, 1 thread": rows})))
    events = [event for event in made["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(rows)
    for rank in range(2):
        mine = [event for event in events if event["tid"] == rank]
        for first, second in pairwise(mine):
            assert first["ts"] + first["dur"] <= second["ts"] + 1e-3
    names = [event["args"]["name"] for event in made["traceEvents"] if event["ph"] == "M"]
    assert names[0] == "data=2, 1 thread"


def test_a_trace_of_a_run_and_of_a_comparison_are_written(tmp_path):
    run = SimpleNamespace(label="data=2, 1 thread", spans=STEPS)
    alone = json.loads(write_trace(run, tmp_path / "new" / "run.json").read_text())
    both = SimpleNamespace(timelines={"serial, 1 thread": STEPS[:1], "data=2, 1 thread": STEPS})
    together = json.loads(write_trace(both, tmp_path / "both.json").read_text())
    assert {event["pid"] for event in alone["traceEvents"]} == {0}
    assert {event["pid"] for event in together["traceEvents"]} == {0, 1}
    with pytest.raises(PlanError, match="recorded with spans=True"):
        write_trace(SimpleNamespace(timelines={}), tmp_path / "none.json")


def test_the_figure_shows_the_usual_step_of_the_last_strategy():
    assert timeline_of({}) is None
    shown = timeline_of({"serial, 1 thread": STEPS[:1], "tensor=2, 1 thread": STEPS, "late": []})
    assert shown is not None
    assert (shown.label, shown.step) == ("tensor=2, 1 thread", 2)
    chart = timeline_chart()
    assert chart.empty.visible
    assert chart.draw(timeline_columns(shown))
    assert not chart.draw(timeline_columns(shown))
    assert chart.figure.y_range.factors == ["rank 1", "rank 0"]
    assert "tensor=2, 1 thread, step 3" in chart.figure.title.text
    assert chart.source.data["lasts"] == pytest.approx([2500.0, 2000.0])


def test_of_very_many_bars_the_longest_are_drawn(monkeypatch):
    monkeypatch.setattr("workbench.ui.timeline_figure.MOST_BARS", 2)
    shown = timeline_of({"data=2": STEPS})
    columns = timeline_columns(shown)
    assert len(columns["start"]) == 2


def test_of_bars_too_many_to_draw_at_once_the_longest_at_each_place_is_drawn():
    # 8 ranks x 1,000 bars of 1 ms, every tenth of them 1.5 ms long, and one of a fifth of the step.
    bars = [
        Bar(rank, "comm" if n % 10 == 3 else "compute", "", n / 1e3, n / 1e3 + long_s, 0)
        for rank in range(8)
        for n in range(1000)
        for long_s in [0.0015 if n % 10 == 3 else 0.2 if n == 500 else 0.001]
    ]
    columns = timeline_columns(Timeline("data=8", 0, tuple(bars)))
    chart = timeline_chart()
    assert chart.draw(columns)
    assert not chart.draw(columns)
    drawn = chart.source.data
    assert len(chart.whole.data["start"]) == len(bars)
    assert len(drawn["start"]) == 8 * (500 + 1)  # the one longer than its place, and 500 places
    assert drawn["lasts"].count(pytest.approx(200.0)) == 8
    assert drawn["lasts"].count(pytest.approx(1.5)) == 8 * 100
    assert drawn["rank"] == sorted(drawn["rank"])
    assert chart.draw(timeline_columns(Timeline("data=8", 0, tuple(bars[:10]))))
    assert len(chart.source.data["start"]) == 10
    assert chart.whole.data["start"] == []


def test_bars_say_of_which_rank_and_layer_they_are():
    bars = Bar(0, "compute", "", 0.0, 1.0, 0), Bar(1, "comm", "conv1: halo", 0.0, 1.0, 8)
    columns = timeline_columns(Timeline("spatial=2", 1, bars))
    assert columns["rank"] == [0, 1]
    assert columns["layer"] == ["", "conv1"]
    table = data_table("timeline", columns)
    assert '<tr data-wb-ranks="0" tabindex="0">' in table
    assert '<tr data-wb-ranks="1" data-wb-layer="conv1" tabindex="0">' in table
