"""Stated choices: which values they have, and under which strategies they do something."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from workbench.errors import PlanError
from workbench.mesh import Mesh
from workbench.strategies import OPTIONS, STRATEGIES

_ELSEWHERE = {
    "zerobubble": "zb-h1",
    "fp32": "full",
    "float32": "full",
    "true": "yes",
    "on": "yes",
    "false": "no",
    "off": "no",
}
"""What values are called elsewhere, in small letters and digits, where that is not alike."""


def checked(name: str, value: Any) -> str:
    """Return the value of a choice as text; where there are ``"yes"`` and ``"no"``, of a bool too.

    Raises
    ------
    PlanError
        If there is no such choice, or it has no such value: names the nearest.
    """
    if name not in OPTIONS:
        hint = _meant(name, [*OPTIONS, "accumulate"])
        raise PlanError(f"There is no option {name!r}; there are: {', '.join(OPTIONS)}.{hint}")
    allowed = OPTIONS[name]
    if isinstance(value, bool) and "yes" in allowed:
        return "yes" if value else "no"
    if allowed and str(value) not in allowed:
        listed = " or ".join(repr(v) for v in allowed)
        hint = _meant(str(value), allowed)
        raise PlanError(f"Option {name}={value!r} is not one of its choices: {listed}.{hint}")
    return str(value)


def _meant(text: str, names: Any) -> str:
    """Return a sentence that names what is nearest to ``text``, whatever its letters; or ""."""
    plain = {_plain(name): name for name in names if name}
    asked = _plain(text)
    if (known := _ELSEWHERE.get(asked)) in plain.values():
        return f" Did you mean {known!r}?"
    near = difflib.get_close_matches(asked, plain, n=1, cutoff=0.6)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def users(name: str) -> tuple[str, ...]:
    """Return the axes whose strategies follow a choice; none if every run does."""
    return tuple(
        axis
        for axis, strategy in STRATEGIES.items()
        if name in strategy.options or name in strategy.follows
    )


def without_effect(options: Mapping[str, str], mesh: Mesh, *others: Mesh) -> str:
    """Return which of the given choices do nothing under ``mesh``, and for which axes they are.

    What does something under one of ``others``, which are given the same choices, is no mistake.
    It is a note in words, or "" if there is nothing to say.
    """
    found = [
        f"{name}={value!r} (for {' or '.join(axes)})"
        for name, value in options.items()
        if value
        and (axes := users(name))
        and not any(each.degree(axis) > 1 for each in (mesh, *others) for axis in axes)
    ]
    return f"no effect under {mesh}: {', '.join(found)}" if found else ""
