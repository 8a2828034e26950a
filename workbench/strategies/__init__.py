"""The table of contents of the subject: one file per axis, and one registration.

Menus, documentation and tests all walk :data:`STRATEGIES`; a strategy that stands here is offered,
described and proved.
"""

from __future__ import annotations

from collections.abc import Mapping

from workbench.strategies import channel, data, pipeline, sharded, spatial, tensor
from workbench.strategies.strategy import Strategy

STRATEGIES: Mapping[str, Strategy] = {
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

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "precision": ("full", "bf16"),
    **{name: values for s in STRATEGIES.values() for name, values in s.options.items()},
}
"""Stated choices of all strategies, and those of every run; the first is what happens without."""

__all__ = ["OPTIONS", "STRATEGIES", "Strategy"]
