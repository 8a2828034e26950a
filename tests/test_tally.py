"""What is told of ranks that fail: the first cause, once, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.cluster.host import Host
from workbench.cluster.tally import Tally

HOSTS = tuple(
    Host(f"tls://w{n}", str(n), f"box{n}/boot/1", cores=2, gpus=(), memory_bytes=1)
    for n in range(3)
)
UP = {"pid": 1, "device": "cpu", "threads": 1, "backend": "gloo"}


@pytest.fixture
def tally() -> Tally:
    return Tally("r1", HOSTS)


def report(rank: int, kind: str | None = None, *, step: int | None = None, **more: Any) -> Any:
    outcome = {"kind": kind, "text": "", "traceback": "", "log": "", "exit_code": 0, **more}
    return {
        "rank": rank,
        "pid": 100 + rank,
        "up": UP,
        "step": step,
        "outcome": outcome if kind else None,
    }


def test_it_is_up_when_every_rank_is(tally: Tally):
    tally.report(report(0))
    tally.report(report(2))
    assert tally.up is None
    assert tally.not_up == [1]
    tally.report(report(1))
    assert tally.up is not None
    assert [(info.rank, info.worker, info.host) for info in tally.up] == [
        (n, f"tls://w{n}", f"box{n}") for n in range(3)
    ]


def test_it_is_done_when_every_rank_is_however_often_that_is_told(tally: Tally):
    for rank in (0, 1, 1, 0):
        tally.report(report(rank, "result"))
    assert not tally.done
    assert not tally.over
    tally.report(report(2, "result"))
    assert tally.done
    assert tally.over


def test_a_cause_outranks_the_lost_contact_that_came_before(tally: Tally):
    tally.report(report(0, "comm", text="CommError: peer gone", exit_code=75))
    assert tally.failing
    assert not tally.over  # a better explanation may follow
    tally.report(report(1, "died", exit_code=-9))
    tally.report(report(2, "comm", exit_code=75))
    assert tally.over
    error = tally.error([], "")
    assert error.rank == 1
    assert str(error).startswith("Rank 1 (process 101, worker tls://w1) was killed from outside")


def test_lost_contact_is_told_of_when_nothing_explains_it(tally: Tally):
    for rank in range(3):
        tally.report(report(rank, "comm", text=f"CommError: {rank} waited", exit_code=75))
    assert tally.over
    assert str(tally.error([], "")).startswith(
        "Rank 0 lost contact with the other ranks: CommError: 0 waited."
    )


def test_lost_contact_is_over_after_a_moment(tally: Tally, monkeypatch):
    tally.report(report(0, "comm", exit_code=75))
    monkeypatch.setattr("workbench.cluster.tally.CAUSE_S", 0.0)
    assert tally.over


def test_of_two_causes_the_first_is_told(tally: Tally):
    tally.report(report(2, "error", text="ValueError: bad"))
    tally.report(report(1, "died", exit_code=-11))
    assert tally.error([], "").rank == 2


def test_the_step_is_the_failed_ranks_own_or_else_how_far_the_others_were(tally: Tally):
    tally.report(report(0, step=7))
    tally.lose("tls://w1", "exit code -9", "its log")
    error = tally.error([report(2, step=8)], "")
    assert error.step == 8
    assert error.details == "its log"
    assert str(error) == (
        "Worker tls://w1 is gone, and rank 1 with it at step 8 (exit code -9). "
        "Run r1 was ended and its other ranks stopped."
    )
    assert tally.gone == {"tls://w1"}


def test_a_rank_that_is_done_does_not_fail_with_its_worker(tally: Tally):
    tally.report(report(1, "result"))
    tally.lose("tls://w1", "", "")
    assert not tally.failing


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ({"kind": "error", "text": "ValueError: bad"}, "Rank 0 raised at step 5: ValueError: bad"),
        ({"kind": "died", "exit_code": -11}, "crashed at step 5 with SIGSEGV"),
        ({"kind": "died", "exit_code": -250}, "crashed at step 5 with signal 250"),
        ({"kind": "died", "exit_code": 4}, "ended at step 5 with exit code 4 before its work"),
        ({"kind": "died", "exit_code": None}, "because the forkserver"),
    ],
)
def test_each_way_to_fail_has_its_sentence(tally: Tally, outcome, sentence):
    tally.report(report(0, step=5, traceback="the traceback", log="the log", **outcome))
    error = tally.error([], "")
    assert sentence in str(error)
    assert str(error).endswith("Run r1 was ended and its other ranks stopped.")
    assert "the traceback" in error.details
    assert "the log" in error.details


def test_what_was_stopped_says_by_what(tally: Tally):
    tally.report(report(0, step=5))
    error = tally.error([], "The lab was closed")
    assert str(error) == "The lab was closed; run r1 has ended."
    assert error.step == 5
