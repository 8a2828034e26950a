"""What a plan says of layers that are split: shared by ``tensor`` and ``channel``."""

from __future__ import annotations

from collections.abc import Collection

from workbench.plan import Plan, in_binary_units

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


def few_heads_notes(plan: Plan, degree: int) -> list[str]:
    """Return what it costs that attention with fewer heads than ranks stays whole."""
    layers = [planned.layer for planned in plan.layers]
    few = [layer for layer in layers if 0 < layer.head_count < degree]
    if not few:
        return []
    kept = {name for layer in few for name, _, _ in layer.by_heads}
    kept_bytes = sum(array.nbytes for array in plan.arrays if array.name in kept)
    work = sum(layer.forward_flops for layer in few)
    share = work / (sum(layer.forward_flops for layer in layers) or 1)
    heads = sorted({layer.head_count for layer in few})
    return [
        f"attention of {' or '.join(map(str, heads))} heads cannot be split in {degree}: every "
        f"rank computes all of {', '.join(dict.fromkeys(layer.name for layer in few))} "
        f"({share:.0%} of the work of the forward pass) and keeps its {in_binary_units(kept_bytes)}"
        " of parameters"
    ]
