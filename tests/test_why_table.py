"""Why this speed, in the panel and the report: every part of a step in ms and percent."""

from __future__ import annotations

import re

import pytest
from fake_comparison import ROWS, FakeComparison, row
from panel_fakes import until

from workbench.bubble import Bubble
from workbench.ui.language import speaking
from workbench.ui.report import report_html
from workbench.ui.why_table import why_table, with_bubbles

pytestmark = pytest.mark.timeout(60)

CELL = re.compile(r"([\d.,]+) ms (?:<span[^>]*>\((\d+)%\)</span>)?")


def lines_of(table):
    """Return each row of the table: its label, its step, the parts as (ms, percent), the ideal."""
    found = []
    for line in re.findall(r"<tr><td>.*?</tr>", table):
        label, step, *parts = re.findall(r"<td>(.*?)</td>", line)
        step_ms = float(step.removesuffix(" ms"))
        found.append(
            (label, step_ms, [tuple(map(float, *(CELL.findall(part) or [()]))) for part in parts])
        )
    return found


def test_the_parts_of_a_step_are_all_of_it():
    lines = lines_of(why_table(ROWS, 2))
    assert [label for label, *_ in lines] == ["serial, 1 thread", "serial, 2 threads", "data=2"]
    for _label, step_ms, (*parts, _ideal) in lines:
        assert len(parts) == 6
        assert sum(ms for ms, _ in parts) == pytest.approx(step_ms, abs=0.1)
        assert sum(percent for _, percent in parts) == pytest.approx(100, abs=3)
    *_, (ideal_ms, reached) = lines[-1][-1]
    assert (ideal_ms, reached) == (40, 100)  # 80 ms on two cores, and 40 measured
    [(_, _, [*_, slower])] = lines_of(why_table([ROWS[0], row("data=2", 2, 1, 0.08)], 2))[1:]
    assert slower == (40, 50)


def test_overhead_is_told_as_it_was_measured():
    measured = row("data=2", 2, 1, 0.04, compute_share=0.47, overhead_share=0.35)
    parts = lines_of(why_table([ROWS[0], measured], 2))[1][2]
    assert parts[-2] == (14, 35)


def test_without_one_thread_there_is_no_ideal_and_without_rows_nothing():
    alone = why_table([row("data=2", 2, 1, 0.04)], 2)
    assert alone.count("<td>–</td>") == 1
    unmeasured = {**ROWS[0], "step_s": None}
    assert why_table([unmeasured], 2) == why_table([], 2) == ""
    # Of comparisons side by side each has a baseline of its own.
    other = row("data=2", 2, 1, 0.04, part=1)
    assert why_table([{**ROWS[0], "part": 0}, other], 2).count("<td>–</td>") == 1


def test_the_panel_and_the_report_show_it(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    going = rooms.compared[0][-1]
    going.go_on("done")
    until(lambda: "Why this speed" in opened._view._why.value, "the table")
    assert lines_of(opened._view._why.value)[-1][:2] == ("data=2", 40)
    opened.speak("zh")
    until(lambda: "为什么是这个速度" in opened._view._why.value, "Chinese")
    made = FakeComparison()
    made.go_on("done")
    with speaking("en"):
        assert "Why this speed" in report_html(made)


def test_the_bubble_of_a_pipeline_is_told_when_the_run_has_ended(opened, rooms):
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    going = rooms.compared[0][-1]
    going.go_on()
    going.bubbles["pipeline=2"] = Bubble(0.124, (0.1, 0.15), 0.156, 0.111)
    until(lambda: opened.state.curves, "the curves")
    assert not any("bubble" in said for said in opened.state.found)
    going.status = "done"
    said = "its ranks wait for 12% of the time, measured; in theory 16% with these stages, 11%"
    until(lambda: said in opened._view._result.value, "the bubble")


def test_the_bubble_of_a_pipeline_stands_apart_from_waiting():
    rows = [
        ROWS[0],
        row("pipeline=2", 2, 1, 0.04, compute_share=0.5, comm_share=0.0, wait_share=0.4),
    ]
    bubble = Bubble(0.45, (0.5, 0.4), 0.2, 0.1, 0.9)
    assert bubble.step_share == pytest.approx(0.18)
    told = with_bubbles(rows, {"pipeline=2": bubble})
    assert '<th scope="col">Bubble</th>' in why_table(told, 2)
    *_, (_, step_ms, parts) = lines_of(why_table(told, 2))
    assert parts[2] == (pytest.approx(7.2), 18)  # by the schedule
    assert parts[3] == (pytest.approx(8.8), 22)  # and beyond
    assert sum(ms for ms, _ in parts[:-1]) == pytest.approx(step_ms, abs=0.1)
    assert "Bubble</th>" not in why_table(rows, 2)
    # No more than was waited.
    [_, late] = with_bubbles(rows, {"pipeline=2": Bubble(0.9, (0.9,), 0.9, 0.9)})
    assert late["bubble_share"] == 0.4
