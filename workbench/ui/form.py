"""What the panel's controls ask for, what is plainly wrong with it, and the same as Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench import machine
from workbench.catalogue import CATALOGUE
from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS
from workbench.speedup import FEWEST_STEPS
from workbench.strategies import STRATEGIES
from workbench.strategies.notation import parse
from workbench.ui import texts

OWN = ""
"""Stands in the place of a catalogue name for the workload that was handed to ``wb.app``."""

FEWEST_USEFUL_STEPS = WARM_UP_STEPS + FEWEST_STEPS


@dataclass(frozen=True)
class Request:
    """What to compare with the serial run: the state of the controls when Run was pressed.

    ``axis`` is ``"serial"`` or the axis of a strategy, whose degree is ``workers``.
    """

    workload: str
    axis: str
    workers: int
    batch: int
    steps: int
    repeats: int = 3

    @property
    def strategy(self) -> str:
        """The strategy as it is written: ``"data=2"``."""
        return "serial" if self.axis == "serial" else f"{self.axis}={self.workers}"

    @property
    def strategies(self) -> list[str]:
        """What is compared."""
        return ["serial"] if self.axis == "serial" else ["serial", self.strategy]

    def python(self) -> str:
        """Return the lines of Python that do the same."""
        if self.workload == OWN:
            work = f"work.with_(batch_size={self.batch})"
        else:
            work = f"wb.workload({self.workload!r}, batch_size={self.batch})"
        return (
            f"lab = wb.start(workers={self.workers})\n"
            f"table = wb.compare({work}, {self.strategies!r}, "
            f"steps={self.steps}, repeats={self.repeats})"
        )


def request(work: Any, presets: Mapping[str, Any]) -> Request:
    """Return the request that the panel opens with.

    Parameters
    ----------
    work:
        A workload of the user's own, or None.
    presets:
        Any of ``workload, strategy, workers, batch, steps, repeats``.

    Raises
    ------
    PlanError
        For a name that there is not, or a value that cannot be; with what there is.
    """
    known = ("workload", "strategy", "workers", "batch", "steps", "repeats")
    for name in presets:
        if name not in known:
            raise PlanError(f"The panel has no preset {name!r}; there are: {', '.join(known)}.")
    chosen = presets.get("workload", OWN if work is not None else next(iter(CATALOGUE)))
    if chosen not in CATALOGUE and not (chosen == OWN and work is not None):
        raise PlanError(f"There is no workload {chosen!r}; there are: {', '.join(CATALOGUE)}.")
    asked = Request(
        workload=chosen,
        axis=next(iter(STRATEGIES)),
        workers=presets.get("workers", max(2, min(machine.cores(), 4))),
        batch=presets.get("batch", 128 if work is None else work.batch_size),
        steps=presets.get("steps", 30 if work is None else work.steps),
        repeats=presets.get("repeats", 3),
    )
    if "strategy" in presets:
        asked = _with_strategy(asked, presets["strategy"])
    problems = check(asked)
    if problems:
        raise PlanError(next(iter(problems.values())))
    return asked


def _with_strategy(asked: Request, strategy: str) -> Request:
    """Set strategy and workers from ``"data=4"``, or the strategy alone from ``"data"``."""
    if strategy in ("serial", *STRATEGIES):
        return replace(asked, axis=strategy)
    axes = parse(strategy).axes
    if len(axes) != 1:
        raise PlanError(
            f"The panel compares one axis at a time, and strategy {strategy!r} has {len(axes)}; "
            f"use wb.compare(work, [{strategy!r}]), or strategy='data=2' here."
        )
    return replace(asked, axis=axes[0][0], workers=axes[0][1])


def check(asked: Request) -> dict[str, str]:
    """Return what is wrong with the numbers, as one sentence for each control concerned."""
    problems = {}
    for name, value in (
        ("workers", asked.workers),
        ("batch", asked.batch),
        ("steps", asked.steps),
        ("repeats", asked.repeats),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems[name] = f"{name.capitalize()} is {value!r}; it is a whole number, 1 or more."
    if "workers" not in problems and asked.axis != "serial" and asked.workers < 2:
        problems["workers"] = (
            f"{asked.axis}=1 is the serial run itself; use 2 workers or more, or choose Serial."
        )
    if "steps" not in problems and asked.steps < FEWEST_USEFUL_STEPS:
        problems["steps"] = (
            f"Steps is {asked.steps}, but the first {WARM_UP_STEPS} only warm up and "
            f"{FEWEST_STEPS} more must be measured; use {FEWEST_USEFUL_STEPS} or more."
        )
    return problems


def hints(asked: Request, cores: int) -> dict[str, str]:
    """Return what is worth knowing about the request on a machine of ``cores``, by control."""
    notes = {"batch": "samples per step", "steps": f"per run, {asked.repeats} repeats"}
    if asked.axis == "serial":
        notes["strategy"] = "One process, which everything else is compared with."
        notes["workers"] = "serial uses one"
    else:
        notes["strategy"] = STRATEGIES[asked.axis].summary
        notes["workers"] = "one rank on each"
        if asked.workers > cores:
            notes["workers"] = (
                f"This machine has {texts.count(cores, 'core')}: expect no gain beyond "
                f"{texts.count(cores, 'worker')}."
            )
    return notes
