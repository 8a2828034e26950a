"""One box of an array of a network: which boxes of what is given it needs, and its numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.arrays.boxes import Box, add_box, holder, shape_of, volume, within
from workbench.arrays.network import Network, Node
from workbench.arrays.rules import Splittable, rule_of
from workbench.windows import Run

Needs = dict[int, list[Box]]
"""Boxes that are needed of each array, by its number."""


def walk_back(network: Network, wanted: Needs, given: Collection[int] = ()) -> Needs:
    """Return the boxes of all arrays that the wanted ones need, back to what is given.

    Inputs and constants are given always.
    """
    found: Needs = {number: list(boxes) for number, boxes in wanted.items()}
    for number in range(max(wanted, default=-1), -1, -1):
        node = network.nodes[number]
        if number not in found or number in given or not node.refs:
            continue
        for box in found[number]:
            if volume(box):
                need(found, node, rule_of(node).needs(node, box))
    return found


def need(found: Needs, node: Node, boxes: Sequence[Box | None]) -> None:
    """Add what an operation needs to what is needed already."""
    for ref, box in zip(node.refs, boxes, strict=True):
        if box is not None and volume(box):
            own = found.setdefault(ref, [])
            if box not in own:
                add_box(own, box)


def compute(
    network: Network, needs: Needs, given: Mapping[int, Mapping[Box, Tensor]]
) -> dict[int, dict[Box, Tensor]]:
    """Return all boxes that nobody else needs, given those of some arrays.

    Arrays are let go as soon as the last operation on them is done.
    """
    values: dict[int, dict[Box, Tensor]] = {}
    last = {
        ref: number
        for number in sorted(needs)
        if number not in given
        for ref in network.nodes[number].refs
    }
    for number in sorted(needs):
        node, boxes = network.nodes[number], needs[number]
        if number in given:
            values[number] = dict(given[number])
            continue
        if number in network.constants:
            constant = network.constants[number]
            values[number] = {
                box: constant[tuple(slice(*run) for run in box)] if box else constant
                for box in boxes
            }
            continue
        rule = rule_of(node)
        values[number] = {
            box: rule.compute(node, box, parts_of(network, node, values, rule.needs(node, box)))
            if volume(box)
            else torch.empty(shape_of(box), dtype=node.dtype)
            for box in boxes
        }
        for ref in set(node.refs):
            if last.get(ref) == number:
                values.pop(ref, None)
    return values


def parts_of(
    network: Network,
    node: Node,
    values: Mapping[int, Mapping[Box, Tensor]],
    boxes: Sequence[Box | None],
) -> list[Any]:
    """Return exactly ``boxes`` of the arrays of an operation; None for what is not needed."""
    return [
        None if box is None else _cut(network, ref, values.get(ref, {}), box)
        for ref, box in zip(node.refs, boxes, strict=True)
    ]


def _cut(network: Network, ref: int, values: Mapping[Box, Tensor], box: Box) -> Tensor:
    if not volume(box):
        return torch.empty(shape_of(box), dtype=network.nodes[ref].dtype)
    if box in values:
        return values[box]
    outer = holder(values, box)
    return values[outer][within(box, outer)]


def inner_box(rule: Splittable, node: Node, box: Box, inner: Sequence[Run]) -> list[Box | None]:
    """Return what a partial result needs, for ranges of the dims that are summed over."""
    found: list[Box | None] = []
    summed = rule.summed(node)
    for place, whole in enumerate(rule.needs(node, box)):
        if place not in summed or whole is None:
            found.append(None)
            continue
        part = list(whole)
        for dim, run in zip(summed[place], inner, strict=True):
            part[dim] = run
        found.append(tuple(part))
    return found


def last_parts(rule: Splittable, node: Node, box: Box) -> list[Box | None]:
    """Return what the end of a sum needs: the arrays that are not summed over."""
    summed = rule.summed(node)
    return [None if place in summed else part for place, part in enumerate(rule.needs(node, box))]
