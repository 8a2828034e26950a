"""The pages on schedulers that others have started: given to a running one, and by preload."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from distributed.dashboard import scheduler as dask_dashboard
from leftovers import until
from test_dashboard import ABOUT, INDIVIDUAL, get, listed
from workloads import make

import workbench
from workbench.cluster.feed import News
from workbench.cluster.pages import PUBLISH, load_pages
from workbench.dashboard import pages, parts
from workbench.dashboard.board import Board
from workbench.planning import plan

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that is made now knows nothing of us, as one in a process of its own."""
    for path in pages.PAGES:
        monkeypatch.delitem(dask_dashboard.applications, path)


def test_a_scheduler_that_runs_is_given_the_pages(without_pages: None):
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        assert not listed(client) & set(INDIVIDUAL)
        assert client.run_on_scheduler(load_pages)
        assert client.run_on_scheduler(load_pages)  # and once is enough
        assert listed(client) >= set(INDIVIDUAL)
        base = client.dashboard_link.removesuffix("/status")
        assert 'href="workbench"' in get(f"{base}/workbench")
        assert get(f"{base}/status").count("Workbench Speedup") == 1
        client.sync(getattr(client.scheduler, PUBLISH), news=pickle.dumps(News(facts=ABOUT)))
        [board] = [p for p in cluster.scheduler.plugins.values() if isinstance(p, Board)]
        assert board.facts == ABOUT
        path = "/individual-workbench-cut"
        get(f"{base}{path}?lang=zh")
        servers = cluster.scheduler.http_application.applications
        [server] = [s for s in servers if path in getattr(s, "app_paths", ())][-1:]
        [session] = server.get_sessions(path)
        words = " ".join(div.text for div in session.document.select({"type": parts.Div}))
        assert "运行中" in words
        assert 'href="?lang=en"' in words


def test_a_scheduler_without_a_dashboard_stays_without_pages():
    with (
        LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert not client.run_on_scheduler(load_pages)
        assert Board.name not in cluster.scheduler.plugins


@pytest.fixture
def preloaded(tmp_path: Path) -> Iterator[Client]:
    """A client of `dask scheduler --preload workbench.dashboard`."""
    address = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    command += ["--preload", "workbench.dashboard", "--host", "127.0.0.1", "--port", "0"]
    command += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(address)]
    here = str(Path(workbench.__file__).parents[1])
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": here},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert until(address.exists, 40)
        with Client(scheduler_file=str(address)) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def test_a_preload_gives_a_scheduler_the_pages_and_no_torch(preloaded: Client):
    assert listed(preloaded) >= set(INDIVIDUAL)
    news = News(facts={"plan": plan(make(), "data=2"), "status": "running"})
    preloaded.sync(getattr(preloaded.scheduler, PUBLISH), news=pickle.dumps(news))

    def loaded(dask_scheduler: Any) -> tuple[Any, set[str]]:
        found = {name.partition(".")[0] for name in __import__("sys").modules}
        return dask_scheduler.plugins["workbench-board"].facts["status"], found

    status, modules = preloaded.run_on_scheduler(loaded)
    assert status == "running"
    assert not {"torch", "ipywidgets"} & modules
