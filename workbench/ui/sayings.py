"""What was found, as sentences that can be said in either language."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from workbench.amdahl import fits
from workbench.bubble import Bubble
from workbench.ui.language import Say, text, translate
from workbench.ui.texts import Row
from workbench.ui.training import Training


def caution(word: str, values: Mapping[str, str]) -> str:
    """Return what stands against comparing, its list translated piece by piece."""
    said = {name: ", ".join(map(translate, each.split(", "))) for name, each in values.items()}
    return text(f"gathered.{word}", **said)


def bubbles(known: Mapping[str, Bubble]) -> list[Say]:
    """Return how much the ranks of pipelines waited, beside theory."""
    return [
        partial(
            text,
            "found.bubble",
            strategy=strategy,
            measured=f"{bubble.measured:.0%}",
            theory=f"{bubble.theory:.0%}",
            equal=f"{bubble.equal_stages:.0%}",
        )
        for strategy, bubble in known.items()
    ]


def amdahl(rows: list[Row]) -> list[str]:
    """Return what Amdahl's law says of strategies that ran on several numbers of cores."""
    return [fit.sentence for fit in fits(rows) if len(fit.points) > 1]


def trained(training: Training) -> list[Say]:
    """Return for each strategy that has trained the model what became of its loss."""
    found: list[Say] = []
    for run in training.segments:
        history = run.history
        if history:
            values = {
                "strategy": run.plan.strategy,
                "first": run.first_step + 1,
                "last": run.first_step + len(history),
                "before": f"{history[0]['loss']:.4g}",
                "after": f"{history[-1]['loss']:.4g}",
            }
            found.append(partial(text, "train.segment", **values))
    return found
