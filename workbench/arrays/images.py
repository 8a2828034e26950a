"""A model on an image in chunks: the whole network for each tile, or layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import dask.array as da
from torch import nn

from workbench.arrays.application import Application
from workbench.arrays.boxes import Chunks, in_proportion
from workbench.arrays.costs import BYTES_PER_S, FLOPS_PER_S, TASK_S, kept_bytes, tiled_flops
from workbench.arrays.graphs import Graph, stages, titles
from workbench.arrays.layouts import mixed, summed_cuts
from workbench.arrays.network import Network
from workbench.arrays.operators import on_meta
from workbench.arrays.receptive import receptive_field
from workbench.arrays.recording import record
from workbench.errors import PlanError

TILE = 1024
MOST_WHOLE_BYTES = 2**30
"""A layer that needs all positions of a cut dim at once gets an array of this size at most."""


def _tiled(x: da.Array, output: tuple[int, ...], tile: Any, title: str) -> Chunks | None:
    """Return the chunks of an output in tiles that the user asks for."""
    if tile is None:
        return None
    dims = len(output) - 2
    sizes = [tile] * dims if isinstance(tile, int) else list(tile)
    if len(sizes) != dims or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise PlanError(
            f"apply({title}, tile={tile!r}): give one size for all of the {dims} dims from dim 2 "
            "on, or one for each."
        )
    cut = tuple(
        tuple(min(n, size - start) for start in range(0, size, n)) or (0,)
        for n, size in zip(sizes, output[2:], strict=True)
    )
    return (in_proportion(x.chunks[0], output[0]), (output[1],), *cut)


def in_tiles(model: nn.Module, x: da.Array, title: str, tile: Any, way: str) -> Application:
    """Lay out a model by tiles of its output.

    Raises
    ------
    PlanError
        If the model's code cannot be recorded, or a layer needs too much of the image at once.
    """
    network = record(model, [on_meta(x)], title)
    source = network.inputs[0]
    output = network.nodes[network.output].shape
    if tile is None and all(len(sizes) == 1 for sizes in x.chunks[2:]) and len(output) > 2:
        tile = TILE
    asked = _tiled(x, output, tile, title) if len(output) > 2 else None
    if asked is not None and len(output) == x.ndim:
        cut = {d: in_proportion(asked[d], x.shape[d]) for d in range(2, x.ndim)}
        x = x if _cut_already(x) else x.rechunk(cut)
    graph = Graph(network, {source: x}, title)
    by_tiles = stages(network, graph.layouts, by_layer=False)
    by_layers = stages(network, graph.layouts, by_layer=True)
    _check_whole(network, graph, title)
    chosen, lines = _way(network, graph, by_tiles, by_layers, way)
    kept = by_layers if chosen == "layers" else by_tiles
    lines += _passes(network, by_tiles)
    named = titles(network, kept, title)
    for number in kept:
        made = graph.add(number, named[number], asked if number == network.output else None)
    field = receptive_field(network)
    lines += [
        f"a row of the output sees all {f.rows} rows of dim {f.dim}, so tiles save no memory there"
        for f in field
        if f.whole
    ]
    return Application("spatial", made, chosen, field, tuple(lines))


def _cut_already(x: da.Array) -> bool:
    return any(len(sizes) > 1 for sizes in x.chunks[2:])


def _check_whole(network: Network, graph: Graph, title: str) -> None:
    """Refuse a layer that needs more at once than there should be in one task."""
    for node in network.nodes:
        given = [graph.layouts[ref] for ref in node.refs]
        for place, dims in mixed(node, given).items():
            nbytes = kept_bytes(network, [node.refs[place]])
            if nbytes > MOST_WHOLE_BYTES and summed_cuts(node, given) is None:
                where = f"layer {node.where!r}" if node.where else "its code"
                positions = " and ".join(map(str, dims))
                raise PlanError(
                    f"apply({title}, strategy='spatial'): {where} ({node.title}) needs all "
                    f"positions of dim {positions} of an array of {node.shapes[place]} at once, "
                    f"{nbytes / 2**30:.1f} GiB where at most {MOST_WHOLE_BYTES / 2**30:.0f} GiB is "
                    "given to one task; use strategy='data', or a smaller array."
                )


def _passes(network: Network, kept: Sequence[int]) -> list[str]:
    """Say which layers look at the whole array, and how that is done."""
    before = [network.nodes[number] for number in kept if number != network.output]
    if not before:
        return []
    names = ", ".join(
        dict.fromkeys(
            f"{node.where} ({node.title})" if node.where else node.title for node in before
        )
    )
    passes = len(before) + 1
    return [
        f"{passes} passes, since what follows these looks at the whole array: {names}; sums and "
        "moments are added up over tiles, and the next pass begins with them"
    ]


def _way(
    network: Network, graph: Graph, by_tiles: list[int], by_layers: list[int], asked: str
) -> tuple[str, list[str]]:
    """Choose between the whole network for each tile, and layer by layer."""
    sources = set(network.inputs)
    tiles_flops = tiled_flops(network, by_tiles, graph.layouts, sources)
    layers_flops = tiled_flops(network, by_layers, graph.layouts, sources)
    extra = [number for number in by_layers if number not in by_tiles]
    nbytes = kept_bytes(network, extra)
    tasks = sum(prod(len(c) for c in graph.layouts[n]) for n in extra) * 4
    seconds = {
        "tiles": tiles_flops / FLOPS_PER_S,
        "layers": layers_flops / FLOPS_PER_S + nbytes / BYTES_PER_S + tasks * TASK_S,
    }
    line = (
        f"the whole network for each tile takes {tiles_flops / 1e9:.3g} GFLOP, "
        f"{tiles_flops / max(1.0, layers_flops):.2f} times those without overlap; layer by layer "
        f"keeps {nbytes / 2**20:,.0f} MiB of feature maps "
        f"(predicted {seconds['tiles']:.3g} s against {seconds['layers']:.3g} s on one core)"
    )
    if asked != "auto":
        return asked, [line, f"way={asked!r} is asked for"]
    room = _memory()
    if nbytes > room / 2:
        return "tiles", [line, f"feature maps do not fit in half of {room / 2**30:.1f} GiB"]
    return min(seconds, key=lambda each: seconds[each]), [line]


def _memory() -> int:
    """Return the bytes that workers have together; those of this machine without a cluster."""
    import psutil
    from distributed.client import _get_global_client

    client = _get_global_client()
    if client is not None and client.status == "running" and not client.asynchronous:
        limits = [
            w["memory_limit"] for w in client.scheduler_info(n_workers=-1)["workers"].values()
        ]
        if limits and all(limits):
            return int(sum(limits))
    return int(psutil.virtual_memory().available)
