"""Layers with the names of labels that all have agreed on in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workbench.traced import Label, Layer, Refusal, Sums, Traced
from workbench.tracking.tags import Names


def settled(layer: Layer, names: Names, reached: Sequence[bool]) -> Layer:
    """Return ``layer`` with canonical labels, and gradients only where they flow."""

    def settle(array: Traced, reached: bool = any(reached)) -> Traced:
        labels: tuple[Label, ...] = tuple(names.canonical(label) for label in array.labels)
        return replace(array, labels=labels, gradient=array.gradient and reached)

    def strings(labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names.find(label) for label in labels))

    sums: tuple[Sums, ...] = tuple(replace(s, labels=strings(s.labels)) for s in layer.sums)
    refusals: tuple[Refusal, ...] = tuple(
        replace(r, labels=strings(r.labels)) for r in layer.refusals
    )
    return replace(
        layer,
        arguments=tuple(map(settle, layer.arguments)),
        # The first speaks for all, the others for themselves.
        results=(*map(settle, layer.results[:1]), *map(settle, layer.results[1:], reached[1:])),
        saved=tuple(map(settle, layer.saved)),
        saved_too=tuple((first, settle(array)) for first, array in layer.saved_too),
        sums=sums,
        refusals=refusals,
    )
