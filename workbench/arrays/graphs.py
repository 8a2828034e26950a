"""From a network and dask arrays to dask arrays: one layer of tasks for each array that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from workbench.arrays.boxes import Box, Chunks, boxes_of, meet, touched, volume, within
from workbench.arrays.layouts import layouts, mixed, reaches, summed_cuts
from workbench.arrays.network import Network
from workbench.arrays.rules import splittable
from workbench.arrays.tasks import (
    Pieces,
    combined,
    finished,
    numpy_type,
    partial_sum,
    strip,
    tile,
)
from workbench.arrays.tiles import Needs, inner_box, last_parts, need, walk_back

_COMBINED_AT_ONCE = 16
_STRIP = 0.5
"""A chunk of which less than this part is needed is cut where it lies before it travels."""


class Graph:
    """Dask layers for arrays of one network.

    Parameters
    ----------
    arrays:
        The dask arrays of the inputs, by number.
    title:
        What the tasks are called.
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


def lower(network: Network, arrays: Sequence[da.Array], title: str) -> da.Array:
    """Return the output of a network on dask arrays, lazily."""
    graph = Graph(network, dict(zip(network.inputs, arrays, strict=True)), title)
    kept = stages(network, graph.layouts, by_layer=False)
    named = titles(network, kept, title)
    for number in kept:
        made = graph.add(number, named[number])
    return made
