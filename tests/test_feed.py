"""What the dashboard is told: batched, thinned, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from leftovers import until

from workbench.cluster import feed as feeds
from workbench.cluster.feed import MOST_ROWS, Feed, News
from workbench.telling import MOST_SPANS, STEPS_SEEN, TIMES_KEPT, Told, show_comparison


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BETWEEN_SENDS_S", 0.02)
    monkeypatch.setattr(feeds, "BETWEEN_LOOKS_S", 0.02)


@pytest.fixture
def sent() -> list[News]:
    return []


@pytest.fixture
def feed(sent: list[News]) -> Iterator[Feed]:
    opened = Feed(sent.append)
    yield opened
    opened.close()


def facts(sent: list[News]) -> dict[str, Any]:
    return {name: fact for news in sent for name, fact in news.facts.items()}


def series(sent: list[News], name: str) -> list[Any]:
    return [row for news in sent for row in news.rows.get(name, [])]


def going_on(**said: Any) -> Callable[[], tuple[dict[str, Any], bool]]:
    return lambda: (said, said.get("status") == "done")


def test_a_show_is_told_once_and_looked_at_until_it_is_over(feed, sent):
    seen = {"status": "running"}
    feed.begin(lambda: (dict(seen), seen["status"] == "done"), "a subject")
    assert until(lambda: facts(sent) == {"status": "running"})
    assert sent[0].new_show
    assert feed.subject == "a subject"
    assert feed.showing
    told = len(sent)
    seen["status"] = "done"
    assert not feed.showing
    assert until(lambda: facts(sent) == {"status": "done"})
    assert until(lambda: feed.subject is None)
    assert [news.new_show for news in sent] == [True] + [False] * (len(sent) - 1)
    assert len(sent) == told + 1  # nothing is sent where nothing is new


def test_what_comes_between_two_messages_goes_in_one(feed, sent):
    held = threading.Event()
    feed._send = lambda news: (held.wait(5), sent.append(news))
    feed.begin(going_on(), None)
    for number in range(100):
        feed.tell("number", number)
        feed.add("steps", [number])
    held.set()
    assert until(lambda: series(sent, "steps")[-1:] == [99])
    assert facts(sent)["number"] == 99
    assert series(sent, "steps") == list(range(100))
    assert len(sent) <= 3


def test_a_flood_is_thinned(feed, sent):
    feed.begin(going_on(), None)
    feed.add("steps", list(range(20 * MOST_ROWS)))
    assert until(lambda: series(sent, "steps"))
    kept = series(sent, "steps")
    assert MOST_ROWS / 2 <= len(kept) <= MOST_ROWS
    assert kept == sorted(kept)


def test_a_feed_that_cannot_send_turns_itself_off(feed):
    def fail(news: News) -> None:
        raise OSError("no scheduler")

    feed._send = fail
    feed.begin(going_on(), None)
    for number in range(feeds.MOST_FAILURES):
        assert until(lambda: not feed._news)
        feed.tell("number", number)
    assert until(lambda: not feed.on)
    feed.tell("number", -1)
    feed.add("steps", [1])
    assert not feed._news


def test_without_pages_nothing_is_gathered_and_no_thread_runs():
    feed = Feed(None)
    feed.begin(going_on(), None)
    feed.tell("number", 1)
    feed.add("steps", [1])
    assert not feed.on
    assert not feed.showing
    assert not feed._news
    assert feed._thread is None


def execution(feed: Feed, work: Any, **changes: Any) -> SimpleNamespace:
    lab = SimpleNamespace(feed=feed, crowded_by=lambda threads: threads > 1)
    return SimpleNamespace(
        work=work,
        plan=SimpleNamespace(
            ranks=2,
            strategy="data=2",
            memory=lambda rank: SimpleNamespace(total_bytes=100 + rank),
        ),
        peak_memory_bytes=[0, 0],
        run_id="r1",
        steps=3,
        threads=1,
        device="cpu",
        record_spans=True,
        placement=SimpleNamespace(lab=lab),
        **changes,
    )


WORK = SimpleNamespace(name="digits", batch_size=32)


def row(step: int) -> dict[str, float]:
    return {"step": step, "time_s": 0.5 * step, "loss": 2.0, "samples_per_s": 64.0}


def span(rank: int, step: int) -> dict[str, Any]:
    times = {"start_s": float(step), "stop_s": step + 0.5}
    return {"rank": rank, "step": step, "kind": "compute", "name": "", "sent_bytes": 0, **times}


def test_a_run_by_itself_is_shown_with_its_steps_its_plan_and_its_timeline(feed, sent):
    told = Told(execution(feed, WORK))
    told.start()
    told.take([row(0), row(1)], [span(rank, step) for rank in (0, 1) for step in (0, 1)])
    told.end("done")
    assert until(lambda: facts(sent).get("status") == "done")
    said = facts(sent)
    assert (said["workload"], said["batch"]) == ("digits", 32)
    assert (said["done"], said["total"]) == (2, 3)
    assert said["crowded"]
    assert said["plan"].strategy == "data=2"
    assert said["run r1"] == {"strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu"}
    assert series(sent, "steps r1") == [(0.0, 2.0, 64.0), (0.5, 2.0, 64.0)]
    assert {bar.rank for bar in said["timeline"].bars} == {0, 1}


def test_accuracy_and_memory_are_told_as_they_become_known(feed, sent):
    going = execution(feed, WORK)
    told = Told(going)
    told.start()
    assert until(lambda: facts(sent).get("memory r1") == ((100, 101), (0, 0)))
    told.take([row(0), row(1), {"step": 1, "accuracy": 0.25}], [])
    told.take([{"step": 0, "accuracy": 0.125}, {"step": 9, "accuracy": 0.5}], [])
    going.peak_memory_bytes[1] = 7
    told.take([], [])
    assert until(lambda: facts(sent).get("memory r1") == ((100, 101), (0, 7)))
    assert "accuracy r1" not in facts(sent)
    told.judge(0.75)
    told.end("done")
    assert until(lambda: facts(sent).get("accuracy r1") == 0.75)
    # Of a step that was not told of, nobody knows when it was.
    assert series(sent, "batches r1") == [(0.5, 0.25), (0.0, 0.125)]
    told._tell_steps([row(step) for step in range(3 * TIMES_KEPT)])
    assert len(told._times) == TIMES_KEPT


def test_of_a_comparison_only_timed_runs_make_curves(feed, sent):
    comparison = SimpleNamespace(
        work=WORK,
        status="running",
        rows=[{"strategy": "serial"}],
        progress=SimpleNamespace(text="serial", done_steps=1, total_steps=9, eta_s=None),
        lab=SimpleNamespace(feed=feed),
        crowded=True,
    )
    show_comparison(comparison)
    proof = SimpleNamespace(name="digits", batch_size=32)
    of_proof, timed = execution(feed, proof), execution(feed, WORK)
    timed.record_spans, timed.run_id = False, "r2"
    recorded = execution(feed, WORK)
    for each in (of_proof, timed, recorded):
        told = Told(each)
        told.start()
        told.take([row(0)], [])
        told.end("done")
    comparison.status = "done"
    assert until(lambda: facts(sent).get("status") == "done")
    assert series(sent, "steps r1") == []
    assert len(series(sent, "steps r2")) == 1
    assert facts(sent)["rows"] == [{"strategy": "serial"}]


def test_a_run_of_many_spans_keeps_those_of_the_newest_steps(feed):
    told = Told(execution(feed, WORK))
    told.start()
    told.take([], [span(0, step) for step in range(1000)])
    told.take([], [span(1, step) for step in range(700)])
    told._show_step()  # ranks are not equally far
    assert feed._told["timeline"].step in range(700 - STEPS_SEEN, 700)
    told.take([], [span(0, 2000)] * (MOST_SPANS - 10))
    assert 2000 in told._spans
    assert sum(len(s) for ranks in told._spans.values() for s in ranks.values()) <= MOST_SPANS
