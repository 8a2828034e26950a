"""What one experiment is, in plain values: checked field by field, and as lines of Python.

The names are those that ``wb.app(...)`` takes. Pure: imports neither torch, dask nor widgets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from workbench.arguments import MOST_THREADS, MOST_WORKERS
from workbench.catalogue import CATALOGUE
from workbench.errors import PlanError
from workbench.planning import checked_options
from workbench.strategies import OPTIONS
from workbench.strategies.notation import parse

OWN = ""
"""The workload of somebody's own, which its code cannot be sent along with."""

WHOLE = {
    "workers": (1, MOST_WORKERS),
    "threads": (1, MOST_THREADS),
    "batch": (1, 2**31),
    "steps": (1, 10**9),
    "repeats": (1, 10**6),
    "seed": (0, 2**63 - 1),
    "accumulate": (1, 2**31),
}
"""The whole numbers, each with the least and the most that it may be."""

MOST_COMPARED = 64
LONGEST_TEXT = 1000
LONGEST_STRATEGY = 100

NAMES = ("workload", "strategy", "compare", *WHOLE, *OPTIONS)
"""Everything that can be chosen, and so be hidden or locked."""

FIELDS = (*NAMES, "hidden", "locked")


def checked(controls: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``controls`` in one form, without those that are None.

    Parameters
    ----------
    controls:
        Any of ``workload`` (a name of the catalogue, or ``""`` for one's own), ``strategy``,
        ``compare`` (more strategies), ``workers``, ``threads``, ``batch``, ``steps``, ``repeats``,
        ``seed``, ``accumulate`` (micro-batches), and the options of the strategies by name
        (``precision``, ``schedule``...). ``hidden`` and ``locked`` are names of these which a
        teacher takes out of sight, or leaves to be seen and not changed.

    Raises
    ------
    PlanError
        For a name that there is not or a value that cannot be: says which, and what is allowed.
    """
    found = {}
    for name, value in controls.items():
        if name not in FIELDS:
            raise PlanError(f"There is no control {_shown(name)}; there are: {', '.join(FIELDS)}.")
        if value is not None:
            found[name] = _CHECKS.get(name, _option)(name, value)
    return {name: found[name] for name in FIELDS if name in found}


def python(controls: Mapping[str, Any], kind: str = "compare") -> str:
    """Return a Python program that measures what ``controls`` say, ready to run.

    Of a workload of one's own it says where that comes in, as a comment.

    Parameters
    ----------
    kind:
        ``"compare"`` the strategies, ``"sweep"`` over all that suit, or ``"train"`` under one.

    Raises
    ------
    PlanError
        As :func:`checked` does.
    """
    asked = checked(controls)
    changes = _pick(asked, batch="batch_size", seed="seed")
    strategy = asked.get("strategy", "serial")
    strategies = ["serial", *asked.get("compare", ()), strategy]
    strategies = list(dict.fromkeys(strategies))
    ranks = max(parse(strategy).size for strategy in strategies)
    lab = {"workers": max(ranks, asked.get("workers", 1)), **_pick(asked, threads="threads")}
    same = {name: name for name in ("threads", "steps", "repeats", "accumulate", *OPTIONS)}
    if asked.get("workload", OWN) == OWN:
        made = "# Your own comes first: work = wb.Workload(model=MyNet, data=(x, y))"
        made += f"\nwork = work.with_({_arguments(changes)})" if changes else ""
    else:
        made = f"work = wb.workload({_arguments(changes, asked['workload'])})"
    chosen = _named(_pick(asked, **same))
    if kind == "train":
        chosen = [_literal(strategy), *(each for each in chosen if not each.startswith("repeats="))]
    elif kind == "sweep":
        chosen = [f"workers={lab['workers']}", *chosen]
    else:
        chosen = [f"strategies={_literal(strategies)}", *chosen]
    result, call, *after = _CALLS[kind]
    return "\n".join(
        (
            "import workbench as wb\n",
            made,
            f"with wb.start({_arguments(lab)}):",
            f"    {result} = wb.{call}(",
            "        work,",
            *(f"        {argument}," for argument in chosen),
            "    )",
            *after,
            "",
        )
    )


_CALLS = {
    "compare": ("table", "compare", "print(table)"),
    "sweep": ("table", "sweep", "print(table)"),
    "train": ("run", "run", "    run.wait()", "print(run.history[-1])"),
}
"""By the kind of a program: the name of what it makes, how, and what is done with that."""


def _pick(asked: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return what is asked of ``names``, under the name that each has as an argument."""
    return {argument: asked[name] for name, argument in names.items() if name in asked}


def _arguments(values: Mapping[str, Any], *first: Any) -> str:
    return ", ".join([*map(_literal, first), *_named(values)])


def _named(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_literal(value)}" for name, value in values.items()]


def _literal(value: Any) -> str:
    """Return a text, number or list as Python, with double quotes: JSON has the same ones."""
    return json.dumps(value, ensure_ascii=False)


def _workload(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in (OWN, *CATALOGUE):
        raise PlanError(
            f"{name}={_shown(value)} is no workload of the catalogue; there are: "
            f"{', '.join(CATALOGUE)}, or an empty text for one's own."
        )
    return value


def _strategy(name: str, value: Any) -> str:
    if isinstance(value, str) and len(value) > LONGEST_STRATEGY:
        raise PlanError(f"{name}={_shown(value)} is longer than any strategy there is.")
    try:
        mesh = parse(value)
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from None
    if mesh.size > MOST_WORKERS:
        raise PlanError(
            f"{name}={_shown(value)} needs {mesh.size:,} ranks, and {MOST_WORKERS} are the most."
        )
    return str(mesh)


def _compare(name: str, value: Any) -> list[str]:
    values = _texts(name, value, "strategies, such as ['data=2', 'tensor=2']")
    return [_strategy(name, each) for each in values]


def _whole(name: str, value: Any) -> int:
    least, most = WHOLE[name]
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    if not fits:
        raise PlanError(
            f"{name}={_shown(value)} cannot be; it is a whole number from {least} to {most:,}."
        )
    return int(value)


def _option(name: str, value: Any) -> str:
    yes_or_no = not isinstance(value, bool) or "yes" in OPTIONS[name]
    if not isinstance(value, str | int | float) or not yes_or_no:
        raise PlanError(f"{name}={_shown(value)} is neither a text nor a number.")
    if len(str(value)) > LONGEST_TEXT or not str(value).isprintable():
        raise PlanError(
            f"{name}={_shown(value)} is no text of at most {LONGEST_TEXT} printable characters."
        )
    return checked_options({name: value})[name]


def _names(name: str, value: Any) -> list[str]:
    for each in (values := _texts(name, value, "names of controls, such as ['workers']")):
        if each not in NAMES:
            raise PlanError(f"{name}: there is no control {each!r}; there are: {', '.join(NAMES)}.")
    return list(dict.fromkeys(values))


def _texts(name: str, value: Any, what: str) -> list[str]:
    fits = isinstance(value, list | tuple) and len(value) <= MOST_COMPARED
    if not fits or not all(isinstance(v, str) and len(v) <= LONGEST_TEXT for v in value):
        raise PlanError(
            f"{name}={_shown(value)} cannot be; it is a list of at most {MOST_COMPARED} {what}."
        )
    return list(value)


def _shown(value: Any) -> str:
    """Return a value as a sentence can hold it, whatever it is."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "workload": _workload,
    "strategy": _strategy,
    "compare": _compare,
    **dict.fromkeys(WHOLE, _whole),
    "hidden": _names,
    "locked": _names,
}
