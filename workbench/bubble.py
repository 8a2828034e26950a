"""The bubble of a pipeline: how much its ranks wait, measured from spans, beside theory.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from workbench.measured import WARM_UP_STEPS
from workbench.plan import Plan
from workbench.schedules import SCHEDULES, bubble, timeline

AXIS = "pipeline"
LAST_CALL = "record of the step"
"""Name of the collective in which the ranks meet when they have gone through all micro-batches."""


@dataclass(frozen=True)
class Bubble:
    """Shares of the time from the first micro-batch to the moment when the last rank is done.

    Attributes
    ----------
    measured, by_rank:
        How much ranks waited: the mean, and each of them, median over steps.
    theory:
        What the schedule leaves idle if every stage takes as long as was measured, each always the
        same, and messages nothing. Of the time of a rank a third each counts as forward, gradients
        of inputs and gradients of weights.
    equal_stages:
        The same for stages that all take as long, see :meth:`workbench.schedules.Schedule.bubble`.
    of_step:
        Which part of a step that time is, median over steps and mean over ranks.
    """

    measured: float
    by_rank: tuple[float, ...]
    theory: float
    equal_stages: float
    of_step: float = 1.0

    @property
    def step_share(self) -> float:
        """Share of a whole step that ranks waited because of the schedule, and of nobody's delay.

        That is the theory's, and no more than was measured; what they waited beyond it was for
        ranks and messages that were late.
        """
        return min(self.measured, self.theory) * self.of_step

    def __str__(self) -> str:
        """Say all of it in a line."""
        return (
            f"{100 * self.measured:.0f} % measured; in theory {100 * self.theory:.0f} % with these "
            f"stages, {100 * self.equal_stages:.0f} % with equal ones"
        )


def bubbles_told(told: Mapping[str, Any]) -> dict[str, Bubble]:
    """Return bubbles by strategy as a document tells them; what is none is left out."""
    found = {}
    for strategy, values in told.items():
        names = ("measured", "theory", "equal_stages", "of_step")
        numbers = [values.get(name) if isinstance(values, Mapping) else None for name in names]
        by_rank = values.get("by_rank") if isinstance(values, Mapping) else None
        ranks = by_rank if isinstance(by_rank, list) else [None]
        if all(type(number) in (int, float) for number in (*numbers, *ranks)):
            measured, theory, equal, of_step = map(float, numbers)  # type: ignore[arg-type]
            found[strategy] = Bubble(measured, tuple(map(float, ranks)), theory, equal, of_step)
    return found


def bubble_of(plan: Plan, spans: Iterable[Mapping[str, Any]]) -> Bubble | None:
    """Measure the bubble of a run of ``plan``; None without a pipeline, or without spans.

    Parameters
    ----------
    spans:
        Those of all ranks, as :attr:`workbench.run.Run.spans` has them. The first steps, in which
        ranks warm up, do not count unless there are no others.
    """
    if not plan.stages:
        return None
    steps: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for span in spans:
        steps[span["rank"], span["step"]].append(span)
    if not steps:
        return None
    first = min(step for _, step in steps) + WARM_UP_STEPS
    idle: dict[int, list[float]] = defaultdict(list)
    busy: dict[int, list[float]] = defaultdict(list)
    part: dict[int, list[float]] = defaultdict(list)
    only_warm_up = all(step < first for _, step in steps)
    for (rank, step), own in steps.items():
        if step >= first or only_warm_up:
            waited_s, whole_s = _of_step(own)
            if whole_s > 0:
                idle[rank].append(waited_s / whole_s)
                busy[rank].append(whole_s - waited_s)
                part[rank].append(whole_s / _length_s(own))
    if len(idle) < plan.ranks:
        return None
    by_rank = tuple(median(idle[rank]) for rank in range(plan.ranks))
    theory = _theory(plan, {rank: median(busy[rank]) for rank in busy})
    of_step = fmean(median(parts) for parts in part.values())
    return Bubble(fmean(by_rank), by_rank, *theory, of_step)


def _length_s(spans: list[Mapping[str, Any]]) -> float:
    """Return how long a rank's step took."""
    return float(max(s["stop_s"] for s in spans) - min(s["start_s"] for s in spans))


def _of_step(spans: list[Mapping[str, Any]]) -> tuple[float, float]:
    """Return how long a rank waited in a step, and how long its part in the pipeline took."""
    loaded = [span["stop_s"] for span in spans if span["kind"] == "load"]
    met = [span["stop_s"] for span in spans if span["name"] == LAST_CALL]
    if not loaded or not met:  # the oldest spans of a long run are dropped
        return 0.0, 0.0
    start, stop = max(loaded), max(met)
    waited = sum(
        span["stop_s"] - span["start_s"]
        for span in spans
        if span["kind"] == "wait" and start <= span["start_s"] < stop
    )
    return waited, stop - start


def _theory(plan: Plan, busy_s: Mapping[int, float]) -> tuple[float, float]:
    """Return the idle share in theory with stages as measured, and with equal ones."""
    ranks, micros = plan.mesh.degree(AXIS), plan.batch.accumulate
    chunks = len(plan.stages) // ranks
    schedule = SCHEDULES[plan.option("schedule", "1f1b")]
    actions = schedule.actions(ranks, chunks, micros)
    at: dict[int, list[float]] = defaultdict(list)
    for rank, seconds in busy_s.items():
        at[plan.mesh.place(rank, AXIS)].append(seconds)
    third = []
    for stage in plan.stages:
        place = stage.number % ranks
        mine = [other.cost_flops for other in plan.stages if other.number % ranks == place]
        part = stage.cost_flops / sum(mine) if sum(mine) else 1 / len(mine)
        third.append(fmean(at[place]) * part / micros / 3)
    equal, _ = schedule.bubble(ranks, chunks, micros)
    return bubble(timeline(actions, third, third, third)), equal
