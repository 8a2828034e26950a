"""From a network and dask arrays to dask arrays: one layer of tasks for each array that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import torch
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from torch import Tensor

from workbench.arrays.boxes import (
    Box,
    Chunks,
    boxes_of,
    meet,
    shape_of,
    touched,
    volume,
    within,
)
from workbench.arrays.layouts import layouts, mixed, reaches, summed_cuts
from workbench.arrays.network import Network, Node
from workbench.arrays.rules import splittable
from workbench.arrays.threads import few_threads
from workbench.arrays.tiles import (
    Needs,
    compute,
    inner_box,
    last_parts,
    need,
    parts_of,
    walk_back,
)
from workbench.errors import PlanError

_COMBINED_AT_ONCE = 16
_STRIP = 0.5
"""A chunk of which less than this part is needed is cut where it lies before it travels."""


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


# What runs in tasks.


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


# How tasks are laid out.


class Graph:
    """Dask layers for arrays of one network.

    Parameters
    ----------
    arrays:
        The dask arrays of the inputs, by number.
    program:
        What brings the network to the workers: a task, or None for the network itself.
    """

    def __init__(self, network: Network, arrays: Mapping[int, da.Array], title: str) -> None:
        self.network = network
        self.arrays = dict(arrays)
        self.layouts = layouts(network, {n: x.chunks for n, x in arrays.items()})
        names = [x.name for x in arrays.values()]
        self.token = tokenize(network, names, [x.chunks for x in arrays.values()])
        self.program = f"weights_{title}-{self.token}"
        self.layers: dict[str, Any] = {
            self.program: {self.program: DataNode(self.program, network)}
        }
        self.dependencies: dict[str, set[str]] = {self.program: set()}
        for x in arrays.values():
            self.layers.update(x.dask.layers)
            self.dependencies.update(x.dask.dependencies)

    def add(self, number: int, title: str, chunks: Chunks | None = None) -> da.Array:
        """Return an array of the network as a dask array; later ones are made from it."""
        node = self.network.nodes[number]
        chunks = chunks or self.layouts[number]
        name = f"{title}-{tokenize(self.token, number, chunks, sorted(self.arrays))}"
        inner = summed_cuts(node, [self.layouts[ref] for ref in node.refs]) if node.refs else None
        layer = _Layer(self, name, title)
        for place, box in boxes_of(chunks):
            key = (name, *place)
            if inner is None:
                sources, refs = layer.sources({number: [box]}, key)
                layer.tasks[key] = Task(
                    key, tile, TaskRef(self.program), number, box, sources, List(*refs)
                )
            else:
                layer.sum_up(key, number, box, inner)
        layer.finish()
        made = da.Array(
            HighLevelGraph(self.layers, self.dependencies),
            name,
            chunks,
            meta=np.empty((0,) * len(chunks), numpy_type(node.dtype)),
        )
        self.arrays[number] = made
        self.layouts[number] = chunks
        return made


class _Layer:
    """The tasks of one array: those of its chunks, of strips for them, and of partial sums."""

    def __init__(self, graph: Graph, name: str, title: str) -> None:
        self.graph, self.name, self.title = graph, name, title
        token = name[len(title) + 1 :]
        self.strips_name, self.partial_name = f"{title}_halo-{token}", f"{title}_partial-{token}"
        self.tasks: dict[Any, Any] = {}
        self.strips: dict[Any, Any] = {}
        self.partials: dict[Any, Any] = {}
        self.used: set[str] = set()

    def sources(self, wanted: Needs, key: Any) -> tuple[tuple[Pieces, ...], list[TaskRef]]:
        """Return the boxes of the given arrays that boxes need, and the tasks that have them."""
        graph = self.graph
        needs = walk_back(graph.network, wanted, set(graph.arrays) - set(wanted))
        return self.pieces({n: needs[n] for n in sorted(needs) if n in graph.arrays})

    def pieces(self, needs: Needs) -> tuple[tuple[Pieces, ...], list[TaskRef]]:
        found, refs = [], list[TaskRef]()
        for number, boxes in needs.items():
            array = self.graph.arrays[number]
            self.used.add(array.name)
            for box in boxes:
                pieces = []
                for place, chunk in touched(array.chunks, box):
                    part = meet(box, chunk) if box else ()
                    if part is None:
                        continue
                    refs.append(self._piece((array.name, *place), part, chunk))
                    whole = volume(part) >= _STRIP * volume(chunk)
                    inside = within(part, chunk if whole else part)
                    pieces.append((within(part, box), inside))
                found.append(Pieces(number, box, tuple(pieces)))
        return tuple(found), refs

    def _piece(self, chunk_key: Any, part: Box, chunk: Box) -> TaskRef:
        if volume(part) >= _STRIP * volume(chunk):
            return TaskRef(chunk_key)
        key = (self.strips_name, *chunk_key[1:], *(row for run in part for row in run))
        key = (key[0], tokenize(chunk_key), *key[1:])
        if key not in self.strips:
            self.strips[key] = Task(key, strip, TaskRef(chunk_key), within(part, chunk))
        return TaskRef(key)

    def sum_up(self, key: Any, number: int, box: Box, inner: list[tuple[int, ...]]) -> None:
        """Add the tasks of partial sums, and those that put them together."""
        node, program = self.graph.network.nodes[number], TaskRef(self.graph.program)
        rule = splittable(node)
        assert rule is not None
        keys = []
        for place, run in boxes_of(tuple(inner)):
            wanted: Needs = {}
            need(wanted, node, inner_box(rule, node, box, run))
            sources, refs = self.sources(wanted, key)
            keys.append((self.partial_name, *key[1:], 0, *place))
            self.partials[keys[-1]] = Task(
                keys[-1], partial_sum, program, number, box, run, sources, List(*refs)
            )
        level = 0
        while len(keys) > _COMBINED_AT_ONCE:
            level += 1
            above = []
            for first in range(0, len(keys), _COMBINED_AT_ONCE):
                some = [TaskRef(k) for k in keys[first : first + _COMBINED_AT_ONCE]]
                above.append((self.partial_name, *key[1:], level, first))
                self.partials[above[-1]] = Task(above[-1], combined, program, number, List(*some))
            keys = above
        at_end: Needs = {}
        need(at_end, node, last_parts(rule, node, box))
        sources, refs = self.sources(at_end, key)
        self.tasks[key] = Task(
            key,
            finished,
            program,
            number,
            box,
            List(*(TaskRef(k) for k in keys)),
            sources,
            List(*refs),
        )

    def finish(self) -> None:
        """Put the layers into the graph."""
        graph, own = self.graph, {graph_name for graph_name in self.used}
        graph.layers[self.name] = self.tasks
        graph.dependencies[self.name] = own | {graph.program}
        for name, tasks in ((self.strips_name, self.strips), (self.partial_name, self.partials)):
            if tasks:
                graph.layers[name] = tasks
                graph.dependencies[name] = own | (
                    {graph.program, *([self.strips_name] if self.strips else [])}
                    if name == self.partial_name
                    else set()
                )
                graph.dependencies[self.name] = graph.dependencies[self.name] | {name}


def stages(network: Network, cuts: Mapping[int, Chunks], by_layer: bool) -> list[int]:
    """Return which arrays to keep on the way to the output, in order, the output last.

    Sums over dims that are cut, and what an operation needs whole that is cut; layer by layer also
    whatever a window reaches over.
    """
    kept = {network.output}
    for number, node in enumerate(network.nodes):
        if not node.refs:
            continue
        given = [cuts[ref] for ref in node.refs]
        if summed_cuts(node, given) is not None:
            kept.add(number)
        elif hit := mixed(node, given):
            kept |= {node.refs[place] for place in hit}
        if by_layer and reaches(node):
            kept.add(node.refs[0])
    made = {n for n, node in enumerate(network.nodes) if node.refs}
    return sorted(kept & made)


def titles(network: Network, kept: Iterable[int], last: str) -> dict[int, str]:
    """Return what to call the tasks of the arrays that are kept."""
    found = {}
    for number in kept:
        node = network.nodes[number]
        where = (node.where or last).replace("-", "_")
        found[number] = last if number == network.output else f"{where}_{node.title}"
    return found


def lower(
    network: Network,
    arrays: Sequence[da.Array],
    title: str,
    *,
    by_layer: bool = False,
    check: Callable[[Network, dict[int, Chunks], list[int]], None] | None = None,
) -> da.Array:
    """Return the output of a network on dask arrays, lazily."""
    graph = Graph(network, dict(zip(network.inputs, arrays, strict=True)), title)
    kept = stages(network, graph.layouts, by_layer)
    if check is not None:
        check(network, graph.layouts, kept)
    named = titles(network, kept, title)
    for number in kept:
        made = graph.add(number, named[number])
    return made
