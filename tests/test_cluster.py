"""The lab: starting, adopting and closing a cluster, and what it shows to whom."""

from __future__ import annotations

import contextlib
import copy
import gc
import http.client
import os
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import rank_targets
from distributed import Client, LocalCluster
from gangs import LIMIT_S, Watched
from leftovers import descendants, forkservers, marked, until

from workbench.cluster.host import equal_threads
from workbench.cluster.lab import Lab, current_lab
from workbench.cluster.starting import start
from workbench.errors import PlanError, RunError

pytestmark = pytest.mark.timeout(60)

TESTS = str(Path(__file__).parent)


def run_python(code: str, *arguments: str, mark: str, folder: Path) -> str:
    """Run a program as a user would, check that it ends quietly, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=textwrap.dedent(code),
        cwd=folder,
        env={**os.environ, mark: "1", "TMPDIR": str(folder), "PYTHONPATH": TESTS},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def mark() -> Iterator[str]:
    """A variable for the environment of processes, none of which may be left."""
    name = f"WORKBENCH_TEST_{uuid.uuid4().hex}"
    yield name
    assert until(lambda: not marked(name)), marked(name)


def test_a_lab_says_what_it_has(lab: Lab):
    assert [host.name for host in lab.hosts] == ["0", "1"]
    assert len({host.host_id for host in lab.hosts}) == 1
    assert all(host.worker.startswith("tls://127.0.0.1:") for host in lab.hosts)
    assert all(host.cores >= 1 and host.memory_bytes > 1 << 28 for host in lab.hosts)
    assert lab.threads == 1
    assert lab.dashboard_link.startswith("http://127.0.0.1:")
    assert current_lab() is lab
    assert "127.0.0.1" in repr(lab)


@pytest.mark.parametrize("workers", [0, -1, True, 2.5, "2", 65, float("nan")])
def test_numbers_of_workers_that_make_no_sense_are_refused(workers):
    with pytest.raises(PlanError, match="must be a whole number from 1 to 64"):
        start(workers=workers)


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, "1", 4097])
def test_numbers_of_threads_that_make_no_sense_are_refused(threads):
    with pytest.raises(PlanError, match="threads"):
        start(workers=1, threads=threads)


def test_other_systems_are_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PlanError, match=r"Linux only, and this is darwin; use WSL2"):
        start(workers=1)


def test_a_client_that_cannot_be_adopted_is_refused(lab: Lab):
    with pytest.raises(PlanError, match="cannot go together"):
        start(workers=2, client=lab.client)
    with pytest.raises(PlanError, match="got str"):
        start(client="tls://127.0.0.1:1")  # type: ignore[arg-type]


def test_more_ranks_than_workers_are_refused(lab: Lab):
    with pytest.raises(PlanError, match="5 ranks need 5 workers, one each, and this cluster has 2"):
        lab.hosts_for(5)


def test_nothing_listens_but_on_loopback(lab: Lab):
    gang = Watched(lab, rank_targets.wait_for_peers)
    gang.until_all()
    tree = [psutil.Process(), *descendants()]
    assert {info.pid for info in gang.ranks} <= {process.pid for process in tree}
    listening = [
        (process.pid, connection.laddr.ip)
        for process in tree
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]
    gang.kill()
    gang.join(LIMIT_S)
    assert len(listening) >= 4  # the scheduler, its dashboard and the workers
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1"}


def test_without_the_certificate_nobody_connects(lab: Lab):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def first_byte(address: str) -> bytes:
        name, port = address.removeprefix("tls://").rsplit(":", 1)
        with (
            socket.create_connection((name, int(port)), timeout=10) as plain,
            context.wrap_socket(plain) as connection,
        ):
            return connection.recv(1)  # in TLS 1.3 the refusal comes with the first answer

    for address in (lab.client.scheduler.address, *(host.worker for host in lab.hosts)):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            first_byte(address)


def test_no_secret_is_where_others_may_look(lab: Lab):
    key = lab.client.security.tls_client_key
    assert key is not None
    secret = key.splitlines()[1]
    for process in descendants():
        assert secret not in " ".join(process.cmdline())
        assert not any(secret in value for value in process.environ().values())
    assert secret not in repr(lab) + repr(lab.client) + repr(lab.client.security)


def test_the_dashboard_is_for_this_machine_only(lab: Lab):
    root = lab.dashboard_link.removesuffix("/status")
    host, port = root.removeprefix("http://").split(":")

    def status(path: str, origin: str | None = None) -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            "Origin": origin,
        }
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers if origin else {})
            return connection.getresponse().status

    assert status("/status") == 200
    assert status(f"/proxy/{port}/{host}/status") == 404
    assert status("/status/ws", "http://evil.example") == 403
    assert status("/status/ws", "http://127.0.0.1.evil.example:8888") == 403
    assert status("/status/ws", "http://localhost:8888") == 101
    assert status("/status/ws", root) == 101


def test_close_leaves_nothing_and_the_settings_of_dask_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings, processes = copy.deepcopy(dask.config.config), set(descendants())
    threads = set(threading.enumerate())
    for _ in range(2):
        with start(workers=2) as lab:
            assert current_lab() is lab
            (folder,) = tmp_path.iterdir()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert dask.config.config == settings
            assert len(set(descendants()) - processes) >= 4
            port = int(lab.client.scheduler.address.rsplit(":", 1)[1])
        lab.close()
        assert repr(lab) == "<Lab, closed>"
        assert not set(descendants()) - processes
        assert not list(tmp_path.iterdir())
        assert dask.config.config == settings
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    # Dask keeps pools of its own for the whole process.
    left = {t.name for t in set(threading.enumerate()) - threads}
    assert not {name for name in left if not name.startswith(("Dask-", "TCP-Executor"))}
    with pytest.raises(RunError, match="This lab is closed"):
        lab.hosts_for(1)


def test_a_private_lab_works_in_a_script_without_a_main_guard(tmp_path, mark):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import threading
            import own_module
            from gangs import Watched
            from workbench.cluster.lab import current_lab
            from workbench.cluster.starting import start

            print("begin")
            labs = [start(workers=1)]
            thread = threading.Thread(target=lambda: labs.append(start(workers=1)))
            thread.start()
            thread.join()
            assert current_lab() is labs[1]
            gangs = [Watched(lab, own_module.double, 21, size=1) for lab in labs]
            for gang in gangs:
                gang.start()
            print(*[gang.join(20).results[0] for gang in gangs])
        """)
    )
    (tmp_path / "own_module.py").write_text("def double(ctx, job):\n    return 2 * job\n")
    assert run_python("", str(script), mark=mark, folder=tmp_path) == "begin\n42 42\n"
    # Torch makes a folder for its compiler's cache wherever an optimizer is made.
    left = {p.name for p in tmp_path.iterdir() if not p.name.startswith("torchinductor_")}
    assert left <= {"script.py", "own_module.py", "__pycache__"}


def test_a_lab_works_in_an_interpreter_and_is_closed_at_its_exit(tmp_path, mark):
    code = "from workbench.cluster.starting import start; print(len(start(workers=2).hosts))"
    assert run_python("", "-c", code, mark=mark, folder=tmp_path) == "2\n"
    assert not list(tmp_path.iterdir())


def test_a_lab_works_where_an_event_loop_runs_as_in_a_notebook(tmp_path, mark):
    code = """
        import asyncio
        from workbench.cluster.starting import start

        async def cell():
            lab = start(workers=1)
            print(lab.client.submit(sum, [1, 2]).result(), len(lab.hosts))

        asyncio.run(cell())
    """
    assert run_python(code, "-", mark=mark, folder=tmp_path) == "3 1\n"
    assert not list(tmp_path.iterdir())


def test_the_client_side_does_not_load_torch(tmp_path, mark):
    code = """
        import sys
        import workbench.cluster.gang, workbench.cluster.starting
        print("torch" in sys.modules)
    """
    assert run_python(code, "-", mark=mark, folder=tmp_path) == "False\n"


@pytest.fixture(scope="module")
def strangers_client() -> Iterator[Client]:
    """A client of a cluster that is not ours: workers under nannies, no encryption."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_running_cluster_is_adopted_and_left_as_it_was(strangers_client: Client):
    before = set(forkservers())
    with start(client=strangers_client) as lab:
        assert start(client=strangers_client) is lab
        assert {host.worker for host in lab.hosts} == set(strangers_client.ncores())
        assert lab.threads == equal_threads(lab.hosts)
        assert len(set(forkservers()) - before) == 2
        shares = [{"x": f} for f in lab.place([da.ones(3), da.ones(4)], lab.hosts)]
        gang = Watched(lab, rank_targets.read, shares=shares)
        assert [result["x"][2] for result in gang.finish().results] == [3.0, 4.0]
        (seen,) = Watched(lab, rank_targets.look, size=1).finish().results
        assert seen["environment"]["MALLOC_TRIM_THRESHOLD_"] != "65536"  # the nanny's
        assert "OMP_NUM_THREADS" not in seen["environment"]
    assert until(lambda: not set(forkservers()) - before)
    assert strangers_client.submit(sum, [1, 2]).result(timeout=LIMIT_S) == 3
    with start(client=strangers_client) as again:
        assert again is not lab
        assert Watched(again, rank_targets.add).finish().ok


def test_a_worker_that_its_nanny_brings_back_is_waited_for(strangers_client: Client):
    with start(client=strangers_client) as lab:
        gang = Watched(lab, rank_targets.wait)
        gang.until_all()
        psutil.Process(gang.ranks[1].pid).parent().parent().kill()
        error = gang.join(LIMIT_S).error
        assert error is not None
        assert error.rank == 1
        assert Watched(lab, rank_targets.add).finish().ok


def test_when_the_client_of_an_adopted_cluster_is_killed_its_ranks_go(
    strangers_client: Client, mark
):
    before = set(forkservers())
    script = f"""
        import time
        from distributed import Client
        import rank_targets
        from gangs import Watched
        from workbench.cluster.starting import start
        lab = start(client=Client({strangers_client.scheduler.address!r}))
        Watched(lab, rank_targets.wait_for_peers).until_all()
        print("ready", flush=True)
        time.sleep(600)
    """
    stranger = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, mark: "1", "PYTHONPATH": TESTS},
        stdout=subprocess.PIPE,
        text=True,
    )
    with stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "ready\n"
        assert len(set(forkservers()) - before) == 2
        stranger.kill()
    assert until(lambda: not set(forkservers()) - before)
    assert strangers_client.submit(sum, [1, 2]).result(timeout=LIMIT_S) == 3


def test_a_share_lies_in_memory_that_can_be_shared_and_is_freed_with_its_future(lab: Lab):
    host = lab.hosts[0]
    x = da.ones((1000, 1000), chunks=(300, 1000), dtype="f8")
    (share,) = lab.place([x], [host])
    share.result(timeout=LIMIT_S)
    assert lab.client.who_has(share)[share.key] == (host.worker,)

    def shared_bytes() -> int:
        return int(lab.ask(_mapped_bytes, workers=[host.worker])[host.worker])

    assert shared_bytes() >= x.nbytes
    assert lab.place([x], [host])[0].key == share.key
    del share
    gc.collect()
    assert until(lambda: shared_bytes() < x.nbytes)


def _mapped_bytes() -> int:
    """Return how much memory of shared arrays this process maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "memfd:workbench-array" in line]
    return sum(int(stop, 16) - int(begin, 16) for begin, stop in ranges)


def test_arrays_that_ranks_cannot_read_are_refused(lab: Lab):
    objects = da.from_array(np.array([{}, None], dtype=object), chunks=1)
    with pytest.raises(PlanError, match="array of object cannot be given to ranks"):
        lab.place([objects], lab.hosts[:1])
    unknown = da.ones(10, chunks=5)
    with pytest.raises(PlanError, match="unknown shape"):
        lab.place([unknown[unknown > 0]], lab.hosts[:1])
