"""What a strategy is: a pure function that cuts a plan along one named axis of its mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from workbench.plan import Plan


@dataclass(frozen=True)
class Strategy:
    """One way to cut a workload, with the words in which it is offered.

    Attributes
    ----------
    axis:
        Name of the mesh axis it uses, and of the strategy in ``"data=2"``.
    family:
        The field's name for this kind of parallelism.
    title, summary:
        What a menu and a page of documentation say.
    cut:
        ``plan -> plan``: declares on this axis of ``plan.mesh`` how every layer's input, parameters
        and output are cut, and which collectives that costs. Raises PlanError where it cannot.
    remedies:
        What to try, in words, where most of the time is lost to ``compute``, ``comm``, ``wait``,
        ``optimizer`` or ``load``.
    options:
        Stated choices, name to allowed values; the first is the default. Without values, any text
        that ``cut`` understands.
    follows:
        Names of choices of other strategies that it follows, too.
    grid:
        Whether its ranks may be laid out on a grid, as in ``"spatial=2x2"``.
    """

    axis: str
    family: str
    title: str
    summary: str
    cut: Callable[[Plan], Plan]
    remedies: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    grid: bool = False
