"""A lab for all tests that need ranks, and the check that nothing of any test is left."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dask
import pytest
import torch
from leftovers import descendants, described, rank_processes, until

from workbench.cluster.lab import Lab


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Several processes test on a few cores: threads of torch would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process that the tests have started outlives them."""
    before = set(descendants())
    yield
    left = until(lambda: not (set(descendants()) - before), seconds=10)
    assert left, described(set(descendants()) - before)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one how many cases were compared."""
    from operator_cases import counted

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["operator_cases"] = dict(counted)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the processes of this test run have compared."""
    from operator_cases import counted

    counted.update(getattr(node, "workeroutput", {}).get("operator_cases", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases of operator parallelism were compared with serial."""
    from operator_cases import counted

    if counted:
        terminalreporter.write_line(
            f"operator parallelism: {counted['equal']:,} cases equal serial, "
            f"{counted['refused']:,} were refused with a sentence"
        )


@pytest.fixture(scope="session")
def one_lab() -> Iterator[Lab]:
    """Two workers of our own, one torch thread per rank; the same for all tests that ask."""
    from workbench.cluster.starting import start

    with start(workers=2, threads=1) as opened:
        yield opened


@pytest.fixture
def lab(one_lab: Lab) -> Iterator[Lab]:
    """The lab of all tests, with no run in it: one that a failed test left fails no other test."""
    yield one_lab
    if (gang := one_lab._gang) is not None:
        gang.kill("The test that started it is over")
        gang.join(20)


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a panel asks for a cluster and for comparisons: they compute nothing."""
    from panel_fakes import fake_rooms

    return fake_rooms(monkeypatch)


@pytest.fixture
def opened(rooms: SimpleNamespace) -> Iterator[Any]:
    """A panel in those rooms."""
    from workbench.ui.panel import app

    made = app(workers=2, batch=32, steps=12)
    yield made
    made.close()


@pytest.fixture
def in_this_thread() -> Iterator[None]:
    """Dask computes in the thread of the test."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def no_rank_is_left() -> Iterator[None]:
    """No rank that the test has started outlives it."""
    before = set(rank_processes())
    yield
    gone = until(lambda: not (set(rank_processes()) - before), seconds=15)
    left = set(rank_processes()) - before
    assert gone or not left, f"ranks are left:\n{described(left)}"
