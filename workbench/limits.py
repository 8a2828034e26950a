"""Limits that a user gives on what a rank keeps in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from workbench.errors import PlanError
from workbench.plan import Plan, in_binary_units

UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
MOST_ACCUMULATE = 64


class TooLarge(PlanError):
    """A rank would keep more than ``memory_limit``; the sentence is not ended yet."""


def bytes_of(text: str) -> int:
    """Return the bytes that ``"2 GiB"``, ``"512 MB"`` or ``"1000000"`` are.

    Raises
    ------
    PlanError
        If it is none of these, or none at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    size = 0
    if found:
        number, unit, binary = found.groups()
        size = int(float(number) * (1024 if binary else 1000) ** UNITS[unit])
    if size < 1:
        raise PlanError(f"memory_limit={text!r} must be bytes, such as '2 GiB' or '512 MiB'.")
    return size


def check_memory(made: Plan) -> None:
    """Raise :class:`TooLarge` if a rank keeps more than the option ``memory_limit`` allows."""
    asked = made.option("memory_limit", "")
    if not asked:
        return
    limit = bytes_of(asked)
    rank = max(range(made.ranks), key=lambda r: made.memory(r).total_bytes)
    memory = made.memory(rank)
    if memory.total_bytes > limit:
        raise TooLarge(
            f"{made.mesh} keeps {in_binary_units(memory.total_bytes)} on rank {rank} "
            f"({in_binary_units(memory.activations_bytes)} of it activations), and memory_limit="
            f"{asked!r} allows {in_binary_units(limit)}"
        )


def nearest(
    plan: Callable[..., Plan], strategy: str, accumulate: int | None, options: dict[str, Any]
) -> str:
    """Return what of that which keeps less fits, tried in turn, in words.

    ``plan`` takes a strategy and options, and raises PlanError where that does not fit.
    """
    changes: list[tuple[str, str, int | None, dict[str, Any]]] = []
    pipelined = re.search(r"pipeline=(\d+)", strategy)
    if pipelined and options.get("schedule") == "gpipe":
        changes.append(("schedule='1f1b'", strategy, accumulate, {**options, "schedule": "1f1b"}))
    if pipelined and options.get("recompute", "no") == "no":
        changes.append(("recompute='yes'", strategy, accumulate, {**options, "recompute": "yes"}))
    for number in (2, 4, 8, 16, 32, MOST_ACCUMULATE):
        if number > (accumulate or 1):
            changes.append((f"accumulate={number}", strategy, number, options))
    if pipelined:
        for degree in (int(pipelined[1]) + 1, 2 * int(pipelined[1])):
            wider = strategy.replace(pipelined[0], f"pipeline={degree}")
            changes.append((wider, wider, accumulate, options))
    for words, other, micro, chosen in changes:
        try:
            plan(other, accumulate=micro, **chosen)
        except PlanError:
            continue
        return words
    free = {name: value for name, value in options.items() if name != "memory_limit"}
    least = plan(strategy, accumulate=accumulate, **free).bytes_per_rank
    return f"memory_limit={in_binary_units(-(-least * 101 // 100))!r}"
