"""How every array of a network is cut in chunks, once its inputs are.

The rule: a dim of a result is cut in proportion to the dim of the array that its places go with,
in the very same places where both have the same size. A dim that goes with none that is cut, such
as the channels that a convolution makes, is one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping

from workbench.arrays.boxes import Box, Chunks, in_proportion, whole
from workbench.arrays.convolutions import Convolution
from workbench.arrays.network import Network, Node
from workbench.arrays.pools import Windowed
from workbench.arrays.rules import rule_of, splittable


def layouts(network: Network, chunks: Mapping[int, Chunks]) -> dict[int, Chunks]:
    """Return the chunks of every array, given those of the inputs."""
    found: dict[int, Chunks] = {}
    for number, node in enumerate(network.nodes):
        if number in chunks:
            found[number] = chunks[number]
        elif not node.refs:
            found[number] = tuple((size,) for size in node.shape)
        else:
            found[number] = tuple(
                _cut(node, dim, [found[ref] for ref in node.refs]) for dim in range(len(node.shape))
            )
    return found


def _cut(node: Node, dim: int, given: list[Chunks]) -> tuple[int, ...]:
    """Return the chunks of one dim of a result."""
    size = node.shape[dim]
    if size > 1 and all(node.shape):
        for place, other in _goes_with(node, dim):
            if len(given[place][other]) > 1:
                return in_proportion(given[place][other], size)
    return (size,)


def _goes_with(node: Node, dim: int) -> list[tuple[int, int]]:
    """Return which dims of which arrays the places of a dim of the result go with."""
    rule, size = rule_of(node), node.shape[dim]
    first, last = (rule.needs(node, _thin(node, dim, row)) for row in (0, size - 1))
    found = []
    for place, (one, other) in enumerate(zip(first, last, strict=True)):
        if one is None or other is None:
            continue
        for number, ((a, b), (c, d)) in enumerate(zip(one, other, strict=True)):
            reach = node.shapes[place][number]
            if 2 * max(abs(c - a), abs(d - b)) >= reach > 1 and (a, b) != (c, d):
                found.append((place, number))
    return found


def _thin(node: Node, dim: int, row: int) -> Box:
    """Return the box of one row along a dim, and of the first along the others."""
    return tuple((row, row + 1) if d == dim else (0, 1) for d in range(len(node.shape)))


def summed_cuts(node: Node, given: list[Chunks]) -> list[tuple[int, ...]] | None:
    """Return the chunks of the dims that an operation sums over; None if none of them is cut."""
    rule = splittable(node)
    if rule is None:
        return None
    summed = rule.summed(node)
    found: list[tuple[int, ...]] = []
    for number in range(len(next(iter(summed.values())))):
        cuts = [given[place][dims[number]] for place, dims in summed.items()]
        found.append(max(cuts, key=len))
    return found if any(len(cuts) > 1 for cuts in found) else None


def mixed(node: Node, given: list[Chunks]) -> dict[int, tuple[int, ...]]:
    """Return the dims, by array, that are cut and that every entry of the result needs whole."""
    if not node.refs or not all(node.shape):
        return {}
    rule, found = rule_of(node), dict[int, tuple[int, ...]]()
    corner = rule.needs(node, tuple((0, 1) for _ in node.shape))
    windows = set(range(2, len(node.shape))) if isinstance(rule, Convolution) else set()
    if isinstance(rule, Windowed):
        windows = set(range(len(node.shape)))
    for place, box in enumerate(corner):
        if box is None:
            continue
        every = whole(node.shapes[place])
        dims = tuple(
            dim
            for dim, run in enumerate(box)
            if run == every[dim]
            and len(given[place][dim]) > 1
            and not (place == 0 and dim in windows)
        )
        if dims:
            found[place] = dims
    return found


def reaches(node: Node) -> bool:
    """Return whether a chunk of the result needs rows of the chunks next to its own."""
    rule = rule_of(node)
    if isinstance(rule, Convolution):
        from workbench.arrays.convolutions import windows

        return any(w.span > 1 and w.span > (1 if w.transposed else w.stride) for w in windows(node))
    return isinstance(rule, Windowed) and not all(
        w.span <= w.stride and not w.table and not w.padding for w in rule.windows(node)
    )
