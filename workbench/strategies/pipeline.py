"""Pipeline parallelism: each rank has some of the layers, and micro-batches flow through them.

While one rank works on the second micro-batch, the next works on the first. A schedule says who
does what when: GPipe (Huang et al., 2019) goes forward with all micro-batches and then back; 1F1B
(Narayanan et al., 2019) keeps fewer of them in memory; the interleaved schedule (Narayanan et al.,
2021) gives each rank several chunks of layers, and ZB-H1 (Qi et al., 2024) works on the gradients
of weights where others wait. With p ranks, m micro-batches and equal stages ranks are idle for
(p - 1) / (k m + p - 1) of the time, the bubble: k is 1, or as many chunks as a rank has, or 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from workbench.errors import PlanError
from workbench.plan import Collective, Plan
from workbench.plan.stages import Crossing
from workbench.schedules import SCHEDULES
from workbench.strategies.strategy import Strategy

AXIS = "pipeline"
MICRO_BATCHES_PER_RANK = 4


def cut(plan: Plan) -> Plan:
    """Give every rank its stages; ``plan.stages`` says where the model is divided."""
    passed = tuple((source, array) for source, array in plan.passed if plan.cuts_of(array))
    plan = replace(plan, passed=passed)
    ranks = plan.mesh.degree(AXIS)
    found = []
    for crossing in plan.crossings:
        first, last = crossing.start % ranks, crossing.stop % ranks
        if first != last:
            found.append(_message(plan, crossing.name, first, crossing))
            if crossing.gradient:
                found.append(_message(plan, crossing.gradient_name, last, crossing))
    return plan.adding(collectives=found, notes=_notes(plan))


def _message(plan: Plan, name: str, sender: int, crossing: Crossing) -> Collective:
    """Return a message to the next rank: what this one has of it, to who has the same of others."""
    whole = crossing.size.of(1)
    sizes = [
        prod(plan.passed_shape(crossing.source, whole, rank))
        if plan.mesh.place(rank, AXIS) == sender
        else 0
        for rank in range(plan.ranks)
    ]
    return Collective(
        name,
        "exchange",
        (AXIS,),
        max(sizes),
        crossing.itemsize,
        "forward" if sender == crossing.start % plan.mesh.degree(AXIS) else "backward",
        times=plan.batch.accumulate,
        by_rank=tuple(sizes),
        per_sample=crossing.size.per_sample,
    )


def stage_of(plan: Plan, number: int) -> int | None:
    """Return the stage of the call of a layer with that number in the plan; None if it has none.

    A module that is cut inside makes whole what it returns, in the last of its stages.
    """
    through = [stage.number for stage in plan.stages if number in stage.layers]
    if not through:
        return None
    return through[-1 if plan.layers[number].choice == "gather output" else 0]


def chunks(schedule: str, asked: str) -> int:
    """Return how many stages each rank has.

    Raises
    ------
    PlanError
        If the schedule does not go with that number.
    """
    found = SCHEDULES[schedule]
    number = int(asked) if asked else 2 if found.chunked else 1
    if not found.allows(number):
        nearest = 2 if found.chunked else 1
        raise PlanError(
            f"schedule={schedule!r} does not go with chunks={number}; use chunks={nearest}"
            + ("." if found.chunked else ", or schedule='interleaved'.")
        )
    return number


Fits = Callable[[int, int, int], bool]
"""Whether a part, given its number, may have the pieces from one place up to another."""


def balance(costs: Sequence[int], parts: int, fits: Fits | None = None) -> list[int] | None:
    """Return where to cut a row of pieces so that the costliest of ``parts`` parts costs least.

    By dynamic programming over where the last part begins. Every part has a piece; the places
    returned are those of the pieces with which the second, third, ... part begins. None if no
    division has parts that all fit.
    """
    fits = fits or (lambda part, begin, end: True)
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    # least[k][n]: cost of the costliest part, and where parts begin, for n pieces in k + 1 parts
    least: list[dict[int, tuple[int, list[int]]]] = [
        {n: (total[n], []) for n in range(1, len(costs) + 1) if fits(0, 0, n)}
    ]
    for k in range(1, parts):
        row = {}
        for n in range(k + 1, len(costs) + 1):
            options = [
                (max(worst, total[n] - total[begin]), [*before, begin])
                for begin, (worst, before) in least[k - 1].items()
                if begin < n and fits(k, begin, n)
            ]
            if options:
                row[n] = min(options)
        least.append(row)
    found = least[parts - 1].get(len(costs))
    return found[1] if found else None


def _notes(plan: Plan) -> list[str]:
    ranks, micro = plan.mesh.degree(AXIS), plan.batch.accumulate
    schedule = plan.option("schedule", "1f1b")
    per_rank = len(plan.stages) // ranks
    total = sum(stage.cost_flops for stage in plan.stages) or 1
    shares = ", ".join(f"{100 * stage.cost_flops / total:.0f} %" for stage in plan.stages)
    what = "work, counted"
    if (whole_s := sum(stage.cost_s or 0.0 for stage in plan.stages)) > 0:
        parts = (f"{100 * (stage.cost_s or 0.0) / whole_s:.0f} %" for stage in plan.stages)
        shares = ", ".join(parts)
        what = f"{1e3 * whole_s:.3g} ms that a micro-batch takes by layers, measured here"
    entries = ", ".join(str(stage.entry) for stage in plan.stages if stage.entry)
    wait, formula = SCHEDULES[schedule].bubble(ranks, per_rank, micro)
    notes = [
        f"{len(plan.stages)} stages with {shares} of the {what}; cut before {entries}",
        f"{SCHEDULES[schedule].title} with {micro} micro-batches: ranks wait {100 * wait:.0f} % "
        f"of the time at best, {formula}",
    ]
    if any(planned.layer.batch_statistics for planned in plan.layers):
        notes.append(
            "BatchNorm normalises each micro-batch by itself, as with accumulate in one process"
            if micro > 1
            else "one micro-batch, since BatchNorm takes statistics of the whole batch: nothing is "
            "gained; with accumulate=8 it takes those of each micro-batch"
        )
    return notes


STRATEGY = Strategy(
    axis=AXIS,
    family="model parallel",
    title="Pipeline (each rank some of the layers)",
    summary=(
        "Layers are divided into stages of equal cost; micro-batches flow through them, so that "
        "all ranks work at the same time but for a bubble at the start and the end."
    ),
    cut=cut,
    options={
        "schedule": tuple(sorted(SCHEDULES, key=lambda name: name != "1f1b")),
        "chunks": ("", "1", "2", "3", "4"),
        "split_at": (),
        "recompute": ("no", "yes"),
        "balance": ("counted", "measured"),
    },
    remedies={
        "compute": (
            "fewer micro-batches (accumulate) or a larger batch: small micro-batches use a "
            "core less well"
        ),
        "comm": "other cuts (split_at), where less crosses",
        "wait": (
            "more micro-batches (accumulate), fewer stages, or stages by measured cost "
            "(balance='measured'): ranks wait while the pipeline fills and drains"
        ),
        "optimizer": "stages that have equally many weights (split_at)",
        "load": "data that lies in memory, in the dtype of the workload",
    },
)
