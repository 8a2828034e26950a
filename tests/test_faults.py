"""Things die: one clear error, nothing left behind, and the lab is usable again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import rank_targets
from equality import workload
from gangs import LIMIT_S, Watched
from leftovers import descendants, forkservers, lives, marked, until

import workbench as wb
from workbench.cluster.gang import GangEnd
from workbench.cluster.lab import Lab
from workbench.cluster.starting import start
from workbench.errors import RunError

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("no_rank_is_left")]


@pytest.fixture(scope="module")
def fragile() -> Iterator[Lab]:
    """A lab of our own whose workers may be killed."""
    with start(workers=2, threads=1) as opened:
        yield opened


def broken(gang: Watched, end: GangEnd) -> RunError:
    """Check that ``gang`` has ended by one error, and return it."""
    assert gang.ends == [end]
    assert not end.ok
    assert end.error is not None
    assert end.results == ()
    assert gang.run_id in str(end.error)
    assert until(lambda: not any(lives(info.pid) for info in gang.ranks))
    return end.error


@pytest.mark.parametrize(
    ("target", "step"),
    [(rank_targets.wait, 4), (rank_targets.wait_for_peers, 9), (rank_targets.multiply, None)],
    ids=["asleep", "in a collective", "computing"],
)
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_a_rank_that_is_killed_is_named(lab: Lab, target, step, victims):
    gang = Watched(lab, target)
    gang.until_all()
    for rank in victims:
        os.kill(gang.ranks[rank].pid, signal.SIGKILL)
    error = broken(gang, gang.join(LIMIT_S))
    assert error.rank in victims
    assert error.step == step
    victim = gang.ranks[error.rank]
    assert f"Rank {victim.rank} (process {victim.pid}, worker {victim.worker}) was killed" in str(
        error
    )
    assert Watched(lab, rank_targets.add).finish().ok


def test_what_a_rank_printed_is_in_the_details(lab: Lab):
    gang = Watched(lab, rank_targets.wait)
    gang.until_all()
    os.kill(gang.ranks[0].pid, signal.SIGKILL)
    assert "waiting" in broken(gang, gang.join(LIMIT_S)).details


@pytest.mark.parametrize(
    ("how", "sentence", "details"),
    [
        ("raise", "Rank 1 raised at step 3: ValueError: a bad batch", "in end_badly"),
        ("exit", "Rank 1 raised at step 3: SystemExit: 3", "this is the end"),
        ("_exit", r"Rank 1 .* ended at step 3 with exit code 4", "this is the end"),
        ("segfault", r"Rank 1 .* crashed at step 3 with SIGSEGV", "rank_targets.py"),
        ("abort", r"Rank 1 .* crashed at step 3 with SIGABRT", "Fatal Python error: Aborted"),
        ("unpicklable", r"Rank 1 raised at step 3: TypeError: .*module", "this is the end"),
    ],
)
def test_a_rank_that_ends_badly_is_the_cause_and_not_those_that_miss_it(
    lab: Lab, how, sentence, details
):
    gang = Watched(lab, rank_targets.end_badly, how)
    error = broken(gang, gang.finish())
    assert re.match(sentence, str(error))
    assert (error.rank, error.step) == (1, 3)
    assert details in error.details
    assert Watched(lab, rank_targets.add).finish().ok


def test_a_job_that_cannot_be_loaded_is_told_of(lab: Lab):
    gang = Watched(lab, rank_targets.greet)
    gang._work["job"] = b"not a pickle"
    assert "UnpicklingError" in str(broken(gang, gang.finish()))


def test_the_loss_of_a_forkserver_is_told_of_and_made_good(lab: Lab):
    gang = Watched(lab, rank_targets.wait)
    gang.until_all()
    parent = psutil.Process(gang.ranks[1].pid).parent()
    assert parent in forkservers()
    parent.kill()
    error = broken(gang, gang.join(LIMIT_S))
    assert error.rank == 1
    assert "because the forkserver" in str(error)
    assert Watched(lab, rank_targets.add).finish().ok


def test_an_idle_forkserver_may_die(lab: Lab):
    for process in forkservers():
        process.kill()
    assert Watched(lab, rank_targets.add).finish().ok


@pytest.mark.parametrize("target", [rank_targets.wait, rank_targets.wait_for_peers])
def test_the_loss_of_a_worker_is_told_of_and_made_good(fragile: Lab, target):
    gang = Watched(fragile, target)
    gang.until_all()
    lost = gang.ranks[0]
    worker = psutil.Process(lost.pid).parent().parent()
    assert "workbench.cluster.worker_process" in worker.cmdline()
    worker.kill()
    error = broken(gang, gang.join(LIMIT_S))
    assert error.rank == 0
    assert f"Worker {lost.worker} is gone, and rank 0 with it" in str(error)
    assert Watched(fragile, rank_targets.add).finish().ok
    assert lost.worker not in [host.worker for host in fragile.hosts]
    assert [host.name for host in fragile.hosts] == ["0", "1"]


def test_a_run_after_the_loss_of_all_workers_has_the_same_data(fragile: Lab, tmp_path: Path):
    work = workload(64, 8)
    options: dict[str, Any] = {"lab": fragile, "folder": tmp_path, "prove": False, "repeats": 1}
    before = wb.compare(work, ["data=2"], steps=6, **options)
    lost = wb.compare(work, ["data=2"], steps=100_000, wait=False, **options)
    assert until(lambda: lost.progress.done_steps > 2, 30)
    # However long they take: Dask would give up workers that are not there again in time.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}):
        for pid in list(fragile.client.run(os.getpid).values()):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RunError, match="is gone"):
            lost.wait(30)
    # What was pinned to workers that are gone is not waited for, though both are still here.
    after = wb.compare(work, ["data=2"], steps=6, **options)
    assert len(after.rows) == len(before.rows) == 3


def test_a_lab_that_is_closed_while_a_gang_works_ends_it():
    before = set(descendants())
    lab = start(workers=2, threads=1)
    gang = Watched(lab, rank_targets.wait_for_peers)
    gang.until_all()
    lab.close()
    error = broken(gang, gang.join(LIMIT_S))
    assert str(error).startswith("The lab was closed; run")
    assert until(lambda: not set(descendants()) - before)
    with pytest.raises(RunError, match="This lab is closed; start another"):
        Watched(lab, rank_targets.greet).start()


SCRIPT = """
    import sys, time
    sys.path[:0] = [{tests!r}]
    import rank_targets
    from gangs import Watched
    from workbench.cluster.starting import start
    lab = start(workers=2, threads=1)
    gang = Watched(lab, rank_targets.{target})
    gang.until_all()
    print(*[info.pid for info in gang.ranks], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("target", ["wait", "hold_the_gil"])
def test_when_the_client_is_killed_everything_goes(tmp_path, target):
    mark = f"WORKBENCH_TEST_{uuid.uuid4().hex}"
    script = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), target=target)
    client = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, mark: "1", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with client:
        assert client.stdout is not None
        ranks = [int(pid) for pid in client.stdout.readline().split()]
        assert len(ranks) == 2
        assert {p.pid for p in marked(mark)} >= {client.pid, *ranks}
        assert list(tmp_path.glob("workbench-*"))
        client.kill()
    assert until(lambda: not marked(mark)), marked(mark)
    assert until(lambda: not list(tmp_path.iterdir())), list(tmp_path.rglob("*"))
