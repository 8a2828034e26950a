"""What the dashboard's pages are told of runs and comparisons, whoever has started them.

The pages are in the scheduler's process. What they are told goes through the lab's feed, which
never holds anybody up: exact numbers are in the results. The names are:

===================== ==========================================================================
``status``            as of a run
``workload``          its name
``batch``             the size of its batch
``doing``             what goes on in a comparison, in words
``strategy``          of a run that is shown by itself
``done``, ``total``   steps
``eta_s``             seconds left, or None
``crowded``           whether it takes all cores of the client's machine, so that drawing slows it
``rows``              the table of a comparison
``plan``              the plan of the newest run that has several ranks, else of the first one
``timeline``          one step, as :class:`workbench.timeline.Timeline`
``run ID``            of a timed run: what a row of the table has, as far as a label needs it
``memory ID``         of that run: bytes by rank, predicted and, 0 until it is known, measured
``accuracy ID``       of that run: accuracy on test data, once it has ended
series ``steps ID``   of that run: (time in s, loss, samples per s) of each step
series ``batches ID`` of that run: (time in s, accuracy) of the training batches that were judged
===================== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.timeline import timeline_of

STEPS_SEEN = 8
"""Newest steps of which one is shown: the one that takes as long as most."""

MOST_SPANS = 20_000
"""Spans that are kept for that: ranks may tell of a step one after the other."""

TIMES_KEPT = 2_000
"""Newest steps whose time is kept: ranks tell how they have judged a batch a little later."""

ENDED = ("done", "stopped", "failed")


def show_comparison(comparison: Any) -> None:
    """Have the pages show a :class:`workbench.comparison.Comparison` from now until it ends."""

    def look() -> tuple[Mapping[str, Any], bool]:
        status = comparison.status  # first: one that has ended has all its rows
        progress = comparison.progress
        facts = {
            **_about(comparison.work),
            "status": status,
            "doing": progress.text,
            "done": progress.done_steps,
            "total": progress.total_steps,
            "eta_s": progress.eta_s,
            "crowded": comparison.crowded,
            "rows": comparison.rows,
        }
        return facts, status in ENDED

    comparison.lab.feed.begin(look, comparison.work)


class Told:
    """What is told of one :class:`workbench.execution.Execution` while it goes on.

    It is shown by itself, or as a part of the comparison that is.
    """

    def __init__(self, execution: Any) -> None:
        self._of, self._timed = execution, False
        self._feed = execution.placement.lab.feed
        self._spans: dict[int, dict[int, list[dict[str, Any]]]] = {}  # by step and rank
        self._kept_spans = 0
        self._status, self._steps = "starting", 0
        self._times: dict[int, float] = {}
        self._predicted: tuple[int, ...] = ()

    def start(self) -> None:
        """Begin: as a show of its own, if none goes on."""
        of = self._of
        alone = not self._feed.showing
        if alone:
            self._feed.begin(self._look, of.work)
        # Of a comparison's runs, those that prove a result or record spans are not timed.
        self._timed = alone or (of.work is self._feed.subject and not of.record_spans)
        if self._timed:
            if of.plan.ranks > 1 or alone:
                self._feed.tell("plan", of.plan)
            about = {"strategy": of.plan.strategy, "ranks": of.plan.ranks, "threads": of.threads}
            self._feed.tell(f"run {of.run_id}", {**about, "device": of.device})
            if self._feed.on:
                ranks = range(of.plan.ranks)
                self._predicted = tuple(of.plan.memory(rank).total_bytes for rank in ranks)
                self._tell_memory()

    def take(self, rows: Sequence[Mapping[str, float]], spans: list[dict[str, Any]]) -> None:
        """Take what a rank has sent."""
        if self._status == "starting":
            self._status = "running"
        steps = [row for row in rows if "loss" in row]
        self._steps += len(steps)
        if self._timed and self._feed.on:
            self._tell_steps(steps)
            self._tell_batches([row for row in rows if "loss" not in row])
            self._tell_memory()
        if spans and self._feed.on:
            for span in spans:
                of_step = self._spans.setdefault(span["step"], {})
                of_step.setdefault(span["rank"], []).append(span)
            self._kept_spans += len(spans)
            while self._kept_spans > MOST_SPANS:
                oldest = self._spans.pop(min(self._spans))
                self._kept_spans -= sum(map(len, oldest.values()))

    def judge(self, accuracy: float | None) -> None:
        """Take how well the trained model does on test data; None if it is not judged."""
        if self._timed and accuracy is not None:
            self._feed.tell(f"accuracy {self._of.run_id}", accuracy)

    def pause(self, paused: bool) -> None:
        """Take that the ranks wait to go on, or do."""
        self._status = "paused" if paused else "running"

    def end(self, status: str) -> None:
        """End; ``status`` as of a run."""
        self._show_step()
        self._status = status  # last: with it the show is over

    def _tell_steps(self, rows: Sequence[Mapping[str, float]]) -> None:
        keys = ("time_s", "loss", "samples_per_s")
        told = [tuple(float(row[key]) for key in keys) for row in rows]
        self._feed.add(f"steps {self._of.run_id}", told)
        self._times |= {int(row["step"]): float(row["time_s"]) for row in rows}
        for step in list(self._times)[:-TIMES_KEPT]:
            del self._times[step]

    def _tell_batches(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Tell of rows that add to steps told before how many targets were right."""
        known = [row for row in rows if row["step"] in self._times]
        told = [(self._times[int(row["step"])], float(row["accuracy"])) for row in known]
        self._feed.add(f"batches {self._of.run_id}", told)

    def _tell_memory(self) -> None:
        measured = tuple(self._of.peak_memory_bytes)
        self._feed.tell(f"memory {self._of.run_id}", (self._predicted, measured))

    def _show_step(self) -> None:
        whole = [s for s, ranks in list(self._spans.items()) if len(ranks) == self._of.plan.ranks]
        newest = [self._spans.get(step, {}) for step in sorted(whole)[-STEPS_SEEN:]]
        spans = [span for ranks in newest for each in list(ranks.values()) for span in each]
        threads = f"{self._of.threads} thread{'s' if self._of.threads > 1 else ''}"
        found = timeline_of({f"{self._of.plan.strategy}, {threads}": spans})
        if found is not None:
            self._feed.tell("timeline", found)

    def _look(self) -> tuple[Mapping[str, Any], bool]:
        status, of = self._status, self._of
        self._show_step()
        facts = {
            **_about(of.work),
            "status": status,
            "strategy": of.plan.strategy,
            "done": self._steps,
            "total": of.steps,
            "eta_s": None,
            "crowded": of.placement.lab.crowded_by(of.plan.ranks * of.threads),
            "rows": [],
        }
        return facts, status in ENDED


def _about(work: Any) -> dict[str, Any]:
    return {"workload": work.name, "batch": work.batch_size}
