"""Ranks that start together, work on one job and end together."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import dask.array as da
import numpy as np
import psutil
import pytest
import rank_targets
from gangs import LIMIT_S, Watched
from leftovers import alive, forkservers, lives, until

from workbench.cluster.lab import Lab
from workbench.cluster.launcher import Launcher
from workbench.cluster.rank_host import ask_host
from workbench.cluster.seat import Seat
from workbench.errors import PlanError, RunError

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_rank_is_left")]


def test_every_rank_gets_the_job_and_its_result_comes_back(lab: Lab):
    gang = Watched(lab, rank_targets.greet, {"batch": 128})
    end = gang.finish()
    assert end.ok, end.error
    assert end.results == tuple({"rank": r, "size": 2, "job": {"batch": 128}} for r in range(2))
    assert gang.ends == [end]


def test_messages_arrive_in_order_for_each_rank(lab: Lab):
    gang = Watched(lab, rank_targets.greet)
    gang.finish()
    for rank in range(2):
        mine = [data for r, kind, data in gang.messages if r == rank and kind == "number"]
        assert mine == [(rank, n) for n in range(5)]


def test_it_is_known_where_each_rank_runs(lab: Lab):
    gang = Watched(lab, rank_targets.look)
    end = gang.finish()
    assert [info.rank for info in gang.ranks] == [0, 1]
    assert [info.worker for info in gang.ranks] == [host.worker for host in lab.hosts]
    assert [info.pid for info in gang.ranks] == [seen["pid"] for seen in end.results]
    assert {(info.device, info.threads, info.backend) for info in gang.ranks} == {
        ("cpu", 1, "shared memory")
    }


def test_a_rank_is_a_process_made_for_torch(lab: Lab):
    (seen,) = Watched(lab, rank_targets.look, size=1, threads=2).finish().results
    assert seen["threads"] == 2
    assert seen["interop"] == 1
    assert not seen["cuda"]
    assert seen["loads_for_an_optimizer"] == set()  # seconds, for each rank of each run
    environment = seen["environment"]
    assert not {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & set(environment)
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) > 1 << 30


def test_ranks_speak_with_each_other(lab: Lab):
    assert Watched(lab, rank_targets.add).finish().results == ([3.0] * 3, [3.0] * 3)


def test_ranks_on_one_machine_can_meet_in_a_file(lab: Lab, monkeypatch):
    monkeypatch.setattr("workbench.comm.connect.choose", lambda host_ids, device: "gloo")
    gang = Watched(lab, rank_targets.add)
    assert gang.finish().results == ([3.0] * 3, [3.0] * 3)
    assert gang.ranks[0].backend == "gloo"


def test_ranks_on_different_machines_meet_at_a_port(lab: Lab, monkeypatch):
    hosts = [replace(host, host_id=f"machine {host.name}") for host in lab.hosts]
    monkeypatch.setattr(lab, "hosts_for", lambda size: tuple(hosts[:size]))
    gang = Watched(lab, rank_targets.add)
    assert gang.finish().results == ([3.0] * 3, [3.0] * 3)
    assert [(info.backend, info.host) for info in gang.ranks] == [
        ("gloo", "machine 0"),
        ("gloo", "machine 1"),
    ]


def test_a_rank_may_be_alone(lab: Lab):
    gang = Watched(lab, rank_targets.add, size=1)
    assert gang.finish().results == ([1.0] * 3,)
    assert gang.ranks[0].backend == "solo"


def test_a_share_reaches_its_rank_and_what_a_rank_keeps_stays_on_its_worker(lab: Lab):
    x = da.arange(70, chunks=9, dtype="f4").reshape(35, 2).rechunk((8, 1))
    hosts = lab.hosts_for(2)
    placed = lab.place([x[:20], x[20:]], hosts)
    gang = Watched(lab, rank_targets.read, shares=[{"x": future} for future in placed])
    end = gang.finish()
    whole = np.arange(70, dtype="f4")
    assert end.results == (
        {"x": ((20, 2), "<f4", float(whole[:40].sum()), False)},
        {"x": ((15, 2), "<f4", float(whole[40:].sum()), False)},
    )
    kept = lab.kept(gang.run_id, 1, "twice x", hosts[1].worker)
    np.testing.assert_array_equal(kept.result(timeout=LIMIT_S), 2 * whole[40:].reshape(15, 2))
    assert lab.client.who_has(kept)[kept.key] == (hosts[1].worker,)
    assert lab.kept(gang.run_id, 1, "twice x", hosts[1].worker).key == kept.key
    with pytest.raises(RunError, match="has not kept an array 'y'"):
        lab.kept(gang.run_id, 1, "y", hosts[1].worker).result(timeout=LIMIT_S)
    lab.forget(gang.run_id)
    with pytest.raises(RunError, match="has not kept"):
        lab.kept(gang.run_id, 0, "twice x", hosts[0].worker).result(timeout=LIMIT_S)


def test_an_empty_share_is_a_share(lab: Lab):
    x = da.zeros((4, 3), chunks=2, dtype="i8")
    placed = lab.place([x, x[:0]], lab.hosts_for(2))
    end = Watched(lab, rank_targets.read, shares=[{"x": future} for future in placed]).finish()
    assert [result["x"][0] for result in end.results] == [(4, 3), (0, 3)]


def test_commands_reach_every_rank(lab: Lab):
    gang = Watched(lab, rank_targets.obey)
    gang.until_all()
    gang.tell("faster")
    gang.tell("stop")
    assert gang.join(LIMIT_S).results == (["faster", "stop"],) * 2


def test_a_large_result_is_whole(lab: Lab):
    results = Watched(lab, rank_targets.return_much, 5_000_000).finish().results
    assert [(len(r), int(r.max())) for r in results] == [(5_000_000, 0), (5_000_000, 1)]


def test_a_second_gang_is_refused_and_the_first_goes_on(lab: Lab):
    first = Watched(lab, rank_targets.obey)
    first.until_all()
    with pytest.raises(RunError, match=f"Run {first.run_id} is still going; stop it first"):
        Watched(lab, rank_targets.greet).start()
    first.tell("stop")
    assert first.join(LIMIT_S).ok


def test_more_ranks_than_workers_are_refused(lab: Lab):
    with pytest.raises(PlanError, match="3 ranks need 3 workers, one each, and this cluster has 2"):
        Watched(lab, rank_targets.greet, size=3).start()
    assert Watched(lab, rank_targets.greet).finish().ok


@pytest.mark.parametrize(
    "target",
    [rank_targets.wait, rank_targets.hold_the_gil, rank_targets.wait_for_peers],
    ids=["asleep", "holding the GIL", "in a collective"],
)
def test_kill_ends_ranks_in_every_phase(lab: Lab, target):
    gang = Watched(lab, target)
    gang.until_all()
    gang.kill()
    end = gang.join(LIMIT_S)
    assert not end.ok
    assert str(end.error) == f"Stopped on request; run {gang.run_id} has ended."
    assert not any(lives(info.pid) for info in gang.ranks)
    gang.kill()
    assert gang.ends == [end]
    assert Watched(lab, rank_targets.greet).finish().ok


def test_kill_ends_a_gang_that_is_starting(lab: Lab):
    gang = Watched(lab, rank_targets.wait)
    raised: list[BaseException] = []

    def start() -> None:
        try:
            gang.start()
        except RunError as error:
            raised.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    gang.kill()
    starter.join(LIMIT_S)
    assert not starter.is_alive()
    gang.kill()  # it may have been up when the first came
    assert not gang.join(LIMIT_S).ok
    assert len(gang.ends) == 1
    assert Watched(lab, rank_targets.greet).finish().ok


def test_kill_ends_ranks_that_are_forked_after_it(lab: Lab):
    """A forkserver that still loads torch forks when the run is over and its meeting closed."""
    gang = Watched(lab, rank_targets.wait)
    starter = threading.Thread(target=gang.finish)
    servers = forkservers()
    for server in servers:
        server.suspend()
    try:
        starter.start()
        workers = [host.worker for host in lab.hosts]
        question = (ask_host, lab.id, "reports", gang.run_id)
        assert until(lambda: all(lab.ask(*question, workers=workers).values()), LIMIT_S)
        time.sleep(0.3)  # they are at their requests to fork
        gang.kill()
        assert not gang.join(LIMIT_S).ok
    finally:
        for server in servers:
            server.resume()
    starter.join(LIMIT_S)
    assert not starter.is_alive()
    assert Watched(lab, rank_targets.greet).finish().ok  # its forks wait behind those


def test_a_rank_that_cannot_be_given_its_orders_is_killed():
    launcher = Launcher()
    try:
        seat = Seat("test", 0, lambda kind, data: None)
        with pytest.raises(OSError, match="Bad file descriptor"):
            seat.launch(launcher, b"", {}, meeting=1 << 30)
        assert seat.ended.wait(LIMIT_S)
        assert seat.report()["outcome"]["exit_code"] == -signal.SIGKILL
    finally:
        launcher.close()


def test_kill_also_ends_what_a_rank_has_started(lab: Lab):
    gang = Watched(lab, rank_targets.leave_a_child)
    children = [psutil.Process(pid) for pid in gang.until_all("child")]
    gang.kill()
    assert until(lambda: not any(map(alive, children)))


def test_the_end_is_found_when_the_events_of_it_are_lost(lab: Lab, monkeypatch):
    monkeypatch.setattr(Watched, "take_event", lambda self, event: None)
    end = Watched(lab, rank_targets.add).finish()
    assert end.ok, end.error


def test_a_callback_that_fails_ends_the_gang_with_its_error(lab: Lab, monkeypatch):
    def refuse(self, rank, kind, data):
        raise KeyError("no such figure")

    monkeypatch.setattr(Watched, "_note", refuse)
    gang = Watched(lab, rank_targets.wait)
    assert "no such figure" in str(gang.finish().error)
    monkeypatch.undo()
    assert Watched(lab, rank_targets.greet).finish().ok


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_rank(lab: Lab):
    error = Watched(lab, rank_targets.return_a_module).finish().error
    assert error is not None
    assert "generator" in str(error)


def test_nothing_of_a_gang_stays_in_the_client(lab: Lab):
    before = len(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    for _ in range(3):
        assert Watched(lab, rank_targets.greet).finish().ok
    assert until(lambda: not {t for t in set(threading.enumerate()) - threads if "gang" in t.name})
    assert len(os.listdir("/proc/self/fd")) <= before + 2
