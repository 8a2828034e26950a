"""What a strategy is: a pure function that adds one named axis to a plan."""

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
        Name of the mesh axis it adds, and of the strategy in ``"data=2"``.
    family:
        The field's name for this kind of parallelism.
    title, summary:
        What a menu and a page of documentation say.
    cut:
        ``(plan, degree) -> plan``: declares on this axis how every layer's input, parameters and
        output are cut, and which collectives that costs. Raises PlanError where it cannot.
    options:
        Stated choices, name to allowed values; the first is the default.
    """

    axis: str
    family: str
    title: str
    summary: str
    cut: Callable[[Plan, int], Plan]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
