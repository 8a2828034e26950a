"""What runs in the tasks of graph mode: numpy arrays in, a numpy array out, torch between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.arrays.boxes import Box, shape_of
from workbench.arrays.network import Network, Node
from workbench.arrays.rules import splittable
from workbench.arrays.threads import few_threads
from workbench.arrays.tiles import Needs, compute, inner_box, last_parts, need, parts_of, walk_back
from workbench.errors import PlanError


@dataclass(frozen=True)
class Pieces:
    """One box of a given array, and where it is put together from.

    ``pieces`` says for each piece where it lies in the box and in what the task is given.
    """

    number: int
    box: Box
    pieces: tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]


def numpy_type(dtype: torch.dtype) -> np.dtype[Any]:
    """Return numpy's type; PlanError for one that it does not have."""
    try:
        found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError as error:
        raise PlanError(
            f"The result would be of type {dtype}, which numpy and dask do not have; let the model "
            "return float32."
        ) from error
    return found


def as_tensor(x: Any) -> Tensor:
    """Return a numpy array as a tensor on the same memory; nobody writes into it."""
    x = np.asarray(x)
    if any(step < 0 for step in x.strides):
        x = np.ascontiguousarray(x)
    return torch.from_numpy(x if x.flags.writeable else np.asarray(_Unlocked(x)))


class _Unlocked:
    """A read-only array for torch, which knows none; the tasks here write into no input."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        found = dict(x.__array_interface__)
        found["data"] = (found["data"][0], False)
        self.__array_interface__ = found


def as_array(x: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array that keeps no more memory than it needs."""
    if x.numel() < x.untyped_storage().nbytes() // max(1, x.element_size()):
        x = x.clone(memory_format=torch.contiguous_format)
    made: np.ndarray = x.contiguous().numpy()
    return made


def put_together(sources: Sequence[Pieces], parts: Sequence[Any]) -> dict[int, dict[Box, Tensor]]:
    """Return the boxes of the given arrays, out of the pieces of their chunks."""
    left = iter(parts)
    found: dict[int, dict[Box, Tensor]] = {}
    for source in sources:
        if len(source.pieces) == 1:
            x = np.asarray(next(left))[source.pieces[0][1]]
        else:
            x = None
            for there, here in source.pieces:
                part = np.asarray(next(left))
                if x is None:
                    x = np.empty(shape_of(source.box), part.dtype)
                x[there] = part[here]
        found.setdefault(source.number, {})[source.box] = as_tensor(x)
    return found


def tile(
    network: Network, target: int, box: Box, sources: Sequence[Pieces], parts: Sequence[Any]
) -> np.ndarray:
    """Return one box of an array of the network."""
    with few_threads(), torch.no_grad():
        given = put_together(sources, parts)
        needs = walk_back(network, {target: [box]}, given)
        return as_array(compute(network, needs, given)[target][box])


def partial_sum(
    network: Network,
    target: int,
    box: Box,
    inner: Sequence[tuple[int, int]],
    sources: Sequence[Pieces],
    parts: Sequence[Any],
) -> np.ndarray:
    """Return what some rows of the dims that are summed over add to one box of the sum."""
    node = network.nodes[target]
    rule = splittable(node)
    assert rule is not None
    with few_threads(), torch.no_grad():
        given = put_together(sources, parts)
        boxes = inner_box(rule, node, box, inner)
        values = _values(network, node, boxes, given)
        own = [part for part in parts_of(network, node, values, boxes) if part is not None]
        return as_array(rule.partial(node, box, own))


def combined(network: Network, target: int, partials: Sequence[Any]) -> np.ndarray:
    """Return what some partial sums come to."""
    node = network.nodes[target]
    rule = splittable(node)
    assert rule is not None
    return as_array(rule.combine(node, [as_tensor(x) for x in partials]))


def finished(
    network: Network,
    target: int,
    box: Box,
    partials: Sequence[Any],
    sources: Sequence[Pieces],
    parts: Sequence[Any],
) -> np.ndarray:
    """Return one box of a sum out of all its partial ones."""
    node = network.nodes[target]
    rule = splittable(node)
    assert rule is not None
    with few_threads(), torch.no_grad():
        given = put_together(sources, parts)
        boxes = last_parts(rule, node, box)
        values = _values(network, node, boxes, given)
        own = [part for part in parts_of(network, node, values, boxes) if part is not None]
        total = rule.combine(node, [as_tensor(x) for x in partials])
        return as_array(rule.finish(node, box, total, own))


def _values(
    network: Network,
    node: Node,
    boxes: Sequence[Box | None],
    given: Mapping[int, Mapping[Box, Tensor]],
) -> dict[int, dict[Box, Tensor]]:
    wanted: Needs = {}
    need(wanted, node, boxes)
    return compute(network, walk_back(network, wanted, given), given)


def strip(x: Any, where: tuple[slice, ...]) -> Any:
    """Return a part of a chunk, cut where the chunk lies."""
    return np.ascontiguousarray(np.asarray(x)[where])
