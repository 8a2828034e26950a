"""The table of contents of the subject: one file per axis, and one registration.

Menus, documentation and tests all walk :data:`STRATEGIES`; a strategy that stands here is offered,
described and proved. One of a user's own is added by :func:`register_strategy`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from workbench.errors import PlanError
from workbench.mesh import AXES
from workbench.strategies import channel, data, pipeline, sharded, spatial, tensor
from workbench.strategies.strategy import Strategy

_offered: dict[str, Strategy] = {
    s.axis: s
    for s in (
        data.STRATEGY,
        sharded.STRATEGY,
        pipeline.STRATEGY,
        tensor.STRATEGY,
        spatial.STRATEGY,
        channel.STRATEGY,
    )
}
_options: dict[str, tuple[str, ...]] = {
    "precision": ("full", "bf16"),
    "memory_limit": (),
    **{name: values for s in _offered.values() for name, values in s.options.items()},
}

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(_offered)
"""Every strategy that is offered, by its axis."""

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(_options)
"""Stated choices of all strategies, and those of every run; the first is what happens without."""


def register_strategy(strategy: Strategy) -> Strategy:
    """Offer a strategy of your own in this process: in plans, runs, comparisons and the panel.

    Its axis has a name of its own, under which it is written: ``"columns=2"``. Ranks along that
    axis have all samples and different features: its ``cut`` declares which parameters are cut, how
    their layers are carried out, and what that sends. Registered again, it replaces the one before.

    Returns
    -------
    The strategy.

    Raises
    ------
    PlanError
        If it is none, its axis cannot be a name or is one of those that come along, or it has an
        option that means something already.
    """
    if not isinstance(strategy, Strategy):
        raise PlanError(
            f"register_strategy takes a Strategy; got {type(strategy).__name__}. Make one: "
            "Strategy(axis='columns', family='own', title=..., summary=..., cut=...)."
        )
    axis = strategy.axis
    if not re.fullmatch(r"[a-z][a-z0-9_]*", axis) or axis == "serial":
        raise PlanError(
            f"The axis of a strategy is a name of small letters, such as 'columns'; got {axis!r}."
        )
    if axis in AXES:
        raise PlanError(
            f"The axis {axis!r} comes along and cannot be replaced; use another name, such as "
            f"'my_{axis}'."
        )
    before = _offered.get(axis)
    own = {} if before is None else before.options
    taken = [name for name in strategy.options if name in _options and name not in own]
    if taken:
        raise PlanError(
            f"The option {taken[0]!r} of {axis!r} means something already; use another name, such "
            f"as '{axis}_{taken[0]}'."
        )
    for name in own:
        del _options[name]
    _options.update(strategy.options)
    _offered[axis] = strategy
    return strategy


__all__ = ["OPTIONS", "STRATEGIES", "Strategy", "register_strategy"]
