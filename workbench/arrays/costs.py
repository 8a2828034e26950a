"""What a tile costs against the whole array: operations, and bytes that are kept on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from workbench.arrays.boxes import Box, Chunks, boxes_of, volume
from workbench.arrays.network import Network, Node
from workbench.arrays.tiles import walk_back

FLOPS_PER_S = 2e10
BYTES_PER_S = 1e9
TASK_S = 1.5e-3
"""What the choice between two ways assumes of a worker: it need not be right by more than a factor.

One core of a laptop does about as many operations; a feature map that is kept is written, moved in
part, and read; a task costs Dask about this much.
"""

_SAMPLED = 25


def flops(node: Node, box: Box) -> float:
    """Return the operations that a box of a result takes; a multiply and an add are two."""
    cells = volume(box)
    if node.kind == "aten.convolution":
        kernel = prod(node.shapes[1][2:]) * node.shapes[0][1] // node.args[8]
        scale = prod(node.args[3]) if node.args[6] else 1
        return 2.0 * cells * kernel / scale
    if node.kind in ("aten.mm", "aten.bmm", "workbench.linear"):
        return 2.0 * cells * node.shapes[0][-1]
    return float(cells)


def flops_of(network: Network, wanted: Mapping[int, Iterable[Box]], given: set[int]) -> float:
    """Return the operations for some boxes and all that they need, back to what is given."""
    needs = walk_back(network, {n: list(boxes) for n, boxes in wanted.items()}, given)
    return sum(
        flops(network.nodes[number], box)
        for number, boxes in needs.items()
        if number not in given and network.nodes[number].refs
        for box in boxes
    )


def tiled_flops(
    network: Network, kept: Iterable[int], cuts: Mapping[int, Chunks], sources: set[int]
) -> float:
    """Return the operations for all chunks of the arrays that are kept, each for itself.

    Of many chunks only some are looked at.
    """
    total, given = 0.0, set(sources)
    for number in kept:
        boxes = [box for _, box in boxes_of(cuts[number])]
        step = max(1, len(boxes) // _SAMPLED)
        some = boxes[step // 2 :: step]
        mine = sum(flops_of(network, {number: [box]}, given - {number}) for box in some)
        total += mine * sum(map(volume, boxes)) / max(1, sum(map(volume, some)))
        given.add(number)
    return total


def kept_bytes(network: Network, kept: Iterable[int]) -> int:
    """Return the size of arrays of the network."""
    return sum(
        prod(network.nodes[number].shape) * network.nodes[number].dtype.itemsize for number in kept
    )
