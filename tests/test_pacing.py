"""Ranks that pause, go on and end together, whoever was told first."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from rank_threads import run_on_threads
from test_run import workload

from workbench.cluster.context import RankContext, Recorder
from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.pacing import Pace

pytestmark = pytest.mark.timeout(30)


@dataclass
class Script(Recorder):
    """An outlet whose commands come one batch at a time, each time the rank looks."""

    batches: list[list[str]] = field(default_factory=list)

    def commands(self) -> list[str]:
        return self.batches.pop(0) if self.batches else []


def walk(scripts: list[list[list[str]]], steps: int) -> list[list[str]]:
    """Return what each rank does: ``"step"`` and ``"pause"`` in turn."""

    def rank(comm: Comm) -> tuple[list[str], list[tuple[str, object]]]:
        outlet = Script(batches=[list(batch) for batch in scripts[comm.rank]])
        context = RankContext(comm.rank, comm.size, comm, torch.device("cpu"), outlet=outlet)
        pace, done = Pace(context), []
        for step in range(steps):
            done.append("step")
            votes = comm.all_reduce(torch.tensor([pace.vote()], dtype=torch.float64), name="v")
            verdict = pace.verdict(float(votes))
            if verdict.stop:
                done.append("stop")
                break
            if verdict.pause:
                done.append("pause")
                pace.wait(step)
                if pace.stop_asked:
                    done.append("stop")
                    break
        return done, outlet.messages

    results = run_threads(len(scripts), rank, timeout_s=10.0)
    done = [walked for walked, _ in results]
    assert all(walked == done[0] for walked in done), done
    assert not any(messages for _, messages in results[1:]), "rank 0 speaks for all"
    said = [data["paused"] for kind, data in results[0][1] if kind == "pace"]  # type: ignore[index]
    assert said == [True, False] * done[0].count("pause")
    return done


NOTHING: list[str] = []


CASES: list[tuple[list[list[str]], list[list[str]], str]] = [
    ([["pause"], ["resume"]], [[]], "step pause step step step step"),
    ([["pause"], NOTHING, ["resume"]], [NOTHING, ["pause"], ["resume"]],
     "step pause step step step step"),
    ([["pause"], ["step 2"], NOTHING, NOTHING, ["resume"]], [["pause"]],
     "step pause step step pause step step"),
    ([["pause"], ["pause"], ["pause", "step 1"], NOTHING, ["resume"]], [],
     "step pause step pause step step step"),
    ([["pause"], ["step 1", "step 1"], NOTHING, NOTHING, ["resume"]], [],
     "step pause step step pause step step"),
    ([["pause", "resume"]], [], "step step step step step"),
    ([["step 2"], NOTHING, ["resume"]], [], "step step pause step step step"),
    ([["pause"]], [NOTHING, NOTHING, ["stop"]], "step pause stop"),
    ([["pause"], ["stop"]], [], "step pause stop"),
    ([["pause"]], [["stop"]], "step stop"),
    ([NOTHING, ["stop"]], [], "step step stop"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "expected", "ranks"),
    [
        (*case, ranks)
        for case in CASES
        for ranks in (1, 2, 3)
        if ranks > 1 or ["stop"] not in case[1]  # there only the second rank is told to stop
    ],
)
def test_all_ranks_do_the_same(
    first: list[list[str]], second: list[list[str]], expected: str, ranks: int
) -> None:
    if ranks == 1 and any("stop" in batch for batch in second):
        pytest.skip("only the other rank is told to stop")
    [done, *_] = walk([first, second, []][:ranks], 5)
    assert done == expected.split()


def test_the_wait_tells_how_long_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 14.5])
    monkeypatch.setattr("workbench.pacing.perf_counter", lambda: next(times))
    monkeypatch.setattr("workbench.pacing.sleep", lambda _s: None)
    outlet = Script(batches=[["pause"], [], [], ["resume"]])

    def rank(comm: Comm) -> float:
        context = RankContext(0, 1, comm, torch.device("cpu"), outlet=outlet)
        pace = Pace(context)
        assert pace.verdict(pace.vote()).pause
        return pace.wait(3)

    assert run_threads(1, rank, timeout_s=10.0) == [4.5]
    assert outlet.messages[0] == ("pace", {"paused": True, "step": 3})


def test_a_pause_is_no_part_of_the_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "vote", lambda pace: 0.5 * (pace.context.rank == 0))
    monkeypatch.setattr(Pace, "wait", lambda pace, step: 1000.0)
    rows = run_on_threads(workload(), "data=2", 3).outcomes[0].rows
    # The waits took no time in truth, so what is taken off for them makes the times negative.
    assert [round(row["time_s"], -3) for row in rows] == [0, -1000, -2000]
    assert [round(row["step_s"], -3) for row in rows] == [0, -1000, -1000]
