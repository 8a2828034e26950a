"""Numbers that a user asks for, each refused in a sentence if nothing can be done with it."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from workbench.errors import PlanError

MOST_THREADS = 1024
MOST_WORKERS = 64
KEEP_CHECKPOINTS = 3
"""How many checkpoints of a run that saves itself stay, if nobody says."""


def check_steps(steps: Any, least: int = 1) -> int:
    """Return ``steps``, or raise PlanError if it is no number of steps, or too few to time."""
    steps = _whole("steps", steps, f"a whole number of updates, {least} or more")
    if steps < least:
        raise PlanError(
            f"steps={steps} are too few to be timed, as the first steps of a run are slower and "
            f"are left out; use {least} or more."
        )
    return steps


def check_repeats(repeats: Any) -> int:
    """Return ``repeats``, or raise PlanError if it is no number of repeats."""
    return _whole("repeats", repeats, "a whole number, 1 or more; 3 show a spread")


def check_count(name: str, value: Any, what: str) -> int:
    """Return a number, or raise PlanError that says that ``name`` must be ``what``."""
    return _whole(name, value, what)


def check_threads(threads: Any) -> int:
    """Return ``threads``, or raise PlanError if it is no number of torch threads per rank."""
    what = f"a whole number of torch threads per rank, from 1 to {MOST_THREADS}"
    return _whole("threads", threads, what, MOST_THREADS)


def check_workers(workers: Any) -> int:
    """Return ``workers``, or raise PlanError if it is no number of workers."""
    return _whole("workers", workers, f"a whole number from 1 to {MOST_WORKERS}", MOST_WORKERS)


def check_accumulate(accumulate: Any, batch_size: int) -> int:
    """Return ``accumulate``, or raise PlanError if a batch has not so many micro-batches."""
    accumulate = _whole("accumulate", accumulate, "a whole number of micro-batches, 1 or more")
    if accumulate > batch_size:
        raise PlanError(
            f"accumulate={accumulate} cuts a batch of {batch_size} into more micro-batches than it "
            f"has samples; use {batch_size} or fewer."
        )
    return accumulate


def _whole(name: str, value: Any, what: str, most: int | None = None) -> int:
    fits = not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1
    if not fits or (most is not None and int(value) > most):
        raise PlanError(f"{name}={value!r} must be {what}.")
    return int(value)
