"""Fakes where the panel's driver meets the other rooms, and what tests of the panel look at."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

from fake_comparison import FakeComparison

from workbench.errors import PlanError
from workbench.strategies.notation import parse
from workbench.ui import driver, shared_lab


class FakeWork:
    """A workload as far as the panel looks at it."""

    def __init__(self, name="net", batch_size=32):
        self.name, self.batch_size, self.steps = name, batch_size, 40
        self.samples, self.sample_shapes, self.seed = 1000, ((1, 32, 32),), 0

    def with_(self, batch_size=None, seed=0):
        changed = FakeWork(self.name, batch_size or self.batch_size)
        changed.seed = seed
        return changed


class FakeLab:
    dashboard_link = "http://127.0.0.1:8787/status"
    feed = SimpleNamespace(on=True)

    def __init__(self, workers):
        self.hosts, self.closed = [None] * workers, False

    def hosts_for(self, ranks):
        if ranks > len(self.hosts):
            raise PlanError(f"{ranks} ranks need {ranks} workers.")

    def close(self):
        self.closed = True


def fake_rooms(monkeypatch):
    """Put fakes where the driver meets the other rooms, and keep what they were asked for."""
    seen = SimpleNamespace(labs=[], compared=[], threads=set(), refuse=None, gate=None, no_start="")

    def plan(work, strategy, **options):
        if seen.refuse is not None and strategy != "serial":
            raise PlanError(seen.refuse)
        return SimpleNamespace(ranks=parse(strategy).size)

    def start(workers):
        seen.threads.add(threading.current_thread().name)
        if seen.no_start:
            raise PlanError(seen.no_start)
        if seen.gate is not None:
            assert seen.gate.wait(20)
        seen.labs.append(FakeLab(workers))
        return seen.labs[-1]

    def compare(work, strategies, **options):
        seen.threads.add(threading.current_thread().name)
        seen.compared.append((work, strategies, options, FakeComparison(work)))
        return seen.compared[-1][-1]

    def no_lab():
        raise PlanError("No cluster is open.")

    monkeypatch.setattr(driver, "plan", plan)
    monkeypatch.setattr(driver, "compare", compare)
    monkeypatch.setattr(shared_lab, "start", start)
    monkeypatch.setattr(shared_lab, "current_lab", no_lab)
    monkeypatch.setattr(driver, "workload", FakeWork)
    return seen


def until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within 20 s"
        time.sleep(0.01)


def shown(made):
    """Return everything that the widgets say, as one text."""
    view = made._view
    texts = [view.actions.message, view._place, view._result, view._table, view._python]
    notes = view.controls.notes.values()
    return "\n".join(widget.value for widget in (*texts, view._problem, *notes))
