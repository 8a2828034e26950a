"""Earlier runs and comparisons side by side, as one comparison, with what stands against that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from workbench.attached_run import OVER, AttachedRun
from workbench.attaching import AttachedComparison
from workbench.compared import Facts, Progress
from workbench.measured import SpanRow
from workbench.speedup import Entry


class Gathered(AttachedComparison):
    """What was measured at several times, read as a comparison is.

    Comparisons keep their own baselines. Single runs of one workload make one comparison: a serial
    one with one thread is its baseline, and without such a run no speedup is known.

    Attributes
    ----------
    parts:
        The comparisons.
    """

    def __init__(self, found: Sequence[AttachedRun | AttachedComparison]) -> None:
        self.parts = [each for each in found if isinstance(each, AttachedComparison)]
        singles = [each for each in found if isinstance(each, AttachedRun)]
        self.parts += [
            _of_runs(facts, [run for run in singles if run.work == facts])
            for facts in dict.fromkeys(run.work for run in singles)
        ]
        document: dict[str, Any] = {
            "machine": self.parts[0].machine,
            "workload": vars(self.parts[0].facts),
            "status": "done",
            "error": None,
            "rows": [],
        }
        super().__init__(document)
        self.runs = tuple(run for part in self.parts for run in part.runs)
        for run in self.runs:
            run.work = self.work
        self.timelines = _timelines(self.parts)
        self.bubbles = {s: bubble for part in self.parts for s, bubble in part.bubbles.items()}

    @property
    def status(self) -> str:
        """``"running"`` while one of them goes on."""
        return "done" if all(part.status in OVER for part in self.parts) else "running"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all; ``part`` counts the comparisons from 0."""
        return [{**row, "part": n} for n, part in enumerate(self.parts) for row in part.rows]

    @property
    def progress(self) -> Progress:
        """How far all of them are."""
        done, total = (
            sum(getattr(part.progress, name) for part in self.parts)
            for name in ("done_steps", "total_steps")
        )
        return Progress(done, total, None, self.status.capitalize())

    def refresh(self) -> Self:
        """Read what is new of those that go on."""
        for part in self.parts:
            part.refresh()
        self.runs = tuple(run for part in self.parts for run in part.runs)
        for run in self.runs:
            run.work = self.work
        return self

    def stop(self) -> None:
        """End those that go on, if this process drives them; as of a run."""
        for part in self.parts:
            if part.status not in OVER:
                part.stop()

    @property
    def cautions(self) -> list[tuple[str, dict[str, str]]]:
        """Why numbers of different parts cannot simply be compared: a word, and its values."""
        found: list[tuple[str, dict[str, str]]] = []
        workloads = dict.fromkeys(f"{p.facts.name} ({p.facts.batch_size})" for p in self.parts)
        if len(workloads) > 1:
            found.append(("workloads", {"named": ", ".join(workloads)}))
        machines = dict.fromkeys(host for part in self.parts for host in part.hosts)
        if len(machines) > 1:
            found.append(("machines", {"named": ", ".join(machines)}))
        baselines = [
            f"{row['baseline']} {row['step_s'] * 1e3:.3g} ms"
            for part in self.parts
            for row in part.rows
            if row["strategy"] == "serial" and row["threads"] == 1
        ]
        if len(dict.fromkeys(baselines)) > 1:
            found.append(("baselines", {"named": ", ".join(baselines)}))
        if any(row["speedup"] is None for row in self.rows):
            found.append(("no_baseline", {}))
        return found


class _Runs(AttachedComparison):
    """Single runs of one workload."""

    def __init__(self, facts: Facts, entries: Sequence[Entry], based: bool) -> None:
        runs = [run for entry in entries for run in entry.runs]
        document = {
            "machine": {},
            "workload": vars(facts),
            "status": "done",
            "error": None,
            "rows": [],
            "steps": runs[0].steps,  # type: ignore[attr-defined]
            "repeats": max(len(entry.runs) for entry in entries),
        }
        super().__init__(document, entries)
        self._based = based
        self.timelines = {run.label: run.spans for run in self.runs if run.spans}
        self.bubbles = {r.strategy: found for r in self.runs if (found := r.bubble)}

    @property
    def status(self) -> str:
        """``"running"`` while one of them goes on."""
        return "done" if all(run.status in OVER for run in self.runs) else "running"

    @property
    def progress(self) -> Progress:
        """How far the runs are."""
        done, total = sum(run.step for run in self.runs), sum(run.steps for run in self.runs)
        return Progress(done, total, None, self.status.capitalize())

    @property
    def hosts(self) -> list[str]:
        """The machines that have driven the runs."""
        return [str(run.summary().get("driver", {}).get("host", "?")) for run in self.runs]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each strategy and number of threads."""
        unknown = ("speedup", "speedup_min", "speedup_max", "speedup_all_threads")
        known = {} if self._based else dict.fromkeys(unknown)
        return [{**row, **known} for row in super().rows]

    def refresh(self) -> Self:
        """Read what is new of the runs."""
        for run in self.runs:
            run.refresh()
        return self

    def stop(self) -> None:
        """End those that go on, if this process drives them; as of a run."""
        for run in self.runs:
            run.stop()


def _of_runs(facts: Facts, runs: Sequence[AttachedRun]) -> _Runs:
    """Return single runs of one workload as a comparison."""
    entries: dict[tuple[str, int, str], Entry] = {}
    for run in sorted(runs, key=lambda run: (run.plan.ranks, run.threads)):
        key = (run.plan.strategy, run.threads, run.device)
        plan = run.plan
        new = Entry(
            plan.strategy, plan.ranks, run.threads, run.device, run.summary()["bytes_per_step"]
        )
        entry = entries.setdefault(key, new)
        entry.runs.append(run)
        entry.backend, entry.complete = run.backend, run.status == "done"
    lines = list(entries.values())
    first = next((e for e in lines if e.strategy == "serial" and e.threads == 1), None)
    if first is not None:
        lines.remove(first)
        lines.insert(0, first)
    return _Runs(facts, lines, first is not None)


def _timelines(parts: Sequence[AttachedComparison]) -> dict[str, list[SpanRow]]:
    return {label: spans for part in parts for label, spans in part.timelines.items()}
