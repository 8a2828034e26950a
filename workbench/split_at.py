"""Stages of a pipeline that begin with modules that the user names, or the nearest that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Protocol

from workbench.errors import PlanError
from workbench.layers.ghosts import Uncarried
from workbench.layers.trace import Record
from workbench.mesh import Mesh
from workbench.nearest import Undivided
from workbench.plan.stages import Call, Stage

LOOK_AT = 16
"""So many places near to one that cannot be cut at are tried."""


class Division(Protocol):
    """A model that has been divided."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages."""


class Divider(Protocol):
    """What divides a model, see :func:`workbench.dividing.divide`."""

    mesh: Mesh
    count: int
    calls: dict[Call, Record]

    def candidates(self) -> list[Call]:
        """Return the calls at which a stage may begin."""

    def best(self, refused: Mapping[Call, str]) -> Any:
        """Return the best division without the entries refused."""

    def at(self, entries: Sequence[Call]) -> Any:
        """Return the division at these entries; raises Uncarried where that cannot be."""


def named(divider: Divider, split_at: str) -> list[Call]:
    """Return the entries that ``split_at`` names.

    Raises
    ------
    Undivided
        If they cannot be, and no others either.
    PlanError
        If they cannot be: names others that can.
    """
    names = [name.strip() for name in split_at.split(",")]
    every = [call.module for call in divider.calls if call.module and not call.number]
    # No name says which call of a module is meant; it is the first.
    unnamed = {call: "" for call in divider.candidates() if call.number}
    known = [call.module for call in divider.candidates() if not call.number]
    needed = divider.count - 1
    got = len(names) if len(names) != needed else len(set(names))
    if got != needed:
        works = divider.best(unnamed)
        raise PlanError(
            f"{divider.mesh} has {divider.count} stages and needs {needed} names in "
            f"split_at; got {got}. Name the modules with which stages begin, such as "
            f"{_entries(works)!r}."
        )
    for place, name in enumerate(names):
        if name not in every:
            alike = get_close_matches(name, known, LOOK_AT, cutoff=0)
            others = [(*names[:place], near, *names[place + 1 :]) for near in alike]
            works = _first_of(divider, others) or divider.best(unnamed)
            raise PlanError(
                f"split_at names {name!r}, which is no module that the model calls; the nearest "
                f"that works is split_at={_entries(works)!r}."
            )
    entries = _in_order(divider.calls, names)
    try:
        divider.at(entries)
    except Uncarried as error:
        moved, why = entries[error.stage - 1], str(error)
    else:
        return entries
    rest = [call.module for call in entries if call != moved]
    moment = divider.calls[moved].enter
    beside = sorted(known, key=lambda name: abs(divider.calls[Call(name)].enter - moment))
    others = [(*rest, near) for near in beside if near not in names][:LOOK_AT]
    try:
        works = _first_of(divider, others) or divider.best(unnamed)
    except Undivided as none:
        raise Undivided(
            f"split_at={split_at!r} cuts where {why}, which cannot be carried along, and no other "
            f"cut into {divider.count} stages can be made",
            none.ranks,
            none.chunks,
            none.most,
        ) from None
    raise PlanError(
        f"split_at={split_at!r} cuts where {why}, which cannot be carried along; the nearest cut "
        f"is split_at={_entries(works)!r}."
    )


def _in_order(calls: Mapping[Call, Record], names: Sequence[str]) -> list[Call]:
    return sorted(map(Call, names), key=lambda call: calls[call].enter)


def _first_of(divider: Divider, others: Sequence[Sequence[str]]) -> Any:
    """Return the first division at modules of such names that can be; None without."""
    for names in others:
        with suppress(KeyError, Uncarried):  # another of the names may be none either
            if len(set(names)) == divider.count - 1:
                return divider.at(_in_order(divider.calls, names))
    return None


def _entries(divided: Division) -> str:
    """Return the entries of stages as they are written."""
    return ",".join(stage.entry.module for stage in divided.stages if stage.entry)
