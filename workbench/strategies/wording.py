"""What a plan says of layers that are split: shared by ``tensor`` and ``channel``."""

from __future__ import annotations

from collections.abc import Collection

from workbench.plan import Plan

WORDS = {
    ("conv", "filters"): "split in filters",
    ("conv", "channels"): "split in input channels, results added up",
    ("conv", "groups"): "split in groups",
    ("linear", "filters"): "split in columns (outputs)",
    ("linear", "channels"): "split in rows (inputs), results added up",
    ("embedding", "filters"): "split in features",
    ("embedding", "channels"): "split in rows (vocabulary), results added up",
    ("heads", "heads"): "split in heads, results added up",
}
"""What is said of a layer, from its role and the plan's choice."""


def notes(plan: Plan, axis: str, split: Collection[str]) -> list[str]:
    """Return how each layer is split, or that it is not; ``split`` are those that can be.

    Where two axes cut features, each speaks of what is its own.
    """
    shared = len(plan.mesh.feature_axes) > 1
    ways: dict[str, list[str]] = {}
    for planned in plan.layers:
        layer = planned.layer
        if layer.role not in ("conv", "linear", "embedding", "heads") or not layer.arguments:
            continue
        if shared and (layer.role == "conv") != (axis == "channel"):
            continue
        way = WORDS.get((layer.role, planned.choice if layer.name in split else ""))
        flat = next((cut.flat for _, cut in planned.parameters if cut.flat), None)
        parts = 0 if flat is None else len(flat.parts) if flat.beside else flat.parts[0][1]
        if way and layer.role == "linear" and parts:
            way = f"{way}, each of {parts} parts by itself"
        ways.setdefault(way or "whole on every rank, as it cannot be split", []).append(layer.name)
    found = [f"{way}: {', '.join(dict.fromkeys(names))}" for way, names in ways.items()]
    if any(cut.axis == axis for cut in plan.class_cuts):
        found.append("cross-entropy of shares of the classes: no rank has all outputs")
    return found


def exposed_note(plan: Plan) -> str:
    """Return why layers stay whole whose parameters other code reads; "" if there are none."""
    if not plan.exposed:
        return ""
    return f"code reads {plan.exposed[0]!r} where its layer is not called, so that stays whole"
