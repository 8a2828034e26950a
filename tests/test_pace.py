"""How often the panel draws: seldom where drawing would slow what it shows, and never too late."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from panel_fakes import shown, until

from workbench.ui import pace
from workbench.ui.pace import FREE, TIMED, TRAINED, Clock, Due, pace_of
from workbench.ui.state import State

NOTHING, ALL = Due(False, False, False), Due(True, True, True)
RUNNING = State(message="", place="", job=1, status="running", turn=1, crowded=True)


@pytest.fixture
def clock(monkeypatch):
    """Yield a clock, with the time of its watch in ``now_s``."""
    time = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: time.now_s))
    made = Clock()

    def look(state, after_s=0.0, again=False):
        time.now_s += after_s
        return made.look(state, again)

    return look


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (RUNNING, TIMED),
        (replace(RUNNING, kind="train"), TRAINED),
        (replace(RUNNING, crowded=False), FREE),
        (replace(RUNNING, status="paused"), FREE),
        (replace(RUNNING, status="done"), FREE),
    ],
)
def test_only_what_has_all_cores_at_work_is_drawn_seldom(state, expected):
    assert pace_of(state) is expected


def test_with_a_core_to_spare_what_moves_is_drawn_at_every_tick(clock):
    free = replace(RUNNING, crowded=False)
    assert clock(free) == ALL
    assert clock(free, 0.25) == Due(said=True, moving=True, read=False)
    assert clock(free, 0.8) == ALL


def test_what_is_timed_is_left_alone_between_two_looks(clock):
    assert clock(RUNNING) == ALL
    assert clock(RUNNING, 0.9) == NOTHING
    assert clock(RUNNING, 0.2) == Due(said=True, moving=False, read=False)
    assert clock(RUNNING, 4.0) == ALL


@pytest.mark.parametrize(
    "change",
    [
        {"turn": 2},
        {"status": "paused"},
        {"status": "done"},
        {"job": 2},
        {"curves": ("one",)},
        {"points": ({},)},
    ],
)
def test_what_begins_or_ends_is_drawn_at_once(clock, change):
    clock(RUNNING)
    assert clock(RUNNING, 0.25) == NOTHING
    assert clock(replace(RUNNING, **change), 0.25) == ALL


def test_a_guess_is_drawn_at_once(clock):
    clock(RUNNING)
    assert clock(RUNNING, 0.25, again=True) == ALL


@pytest.mark.parametrize("crowded", [True, False])
def test_the_panel_says_why_figures_move_seldom(opened, rooms, crowded):
    opened.run()
    until(lambda: rooms.compared, "a comparison")
    going = rooms.compared[0][-1]
    going.crowded = crowded
    going.go_on()
    until(lambda: opened.state.turn == 3, "its first state")
    hint = opened._view._pace
    until(lambda: ("figures follow" in hint.value) == crowded, "the sentence")
    going.status = "done"
    until(lambda: "Done" in shown(opened), "the end")
    assert hint.value == ""
