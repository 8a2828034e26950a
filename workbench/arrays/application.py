"""A whole model on a dask array: how it is carried out, and why so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import dask.array as da
import numpy as np
import torch
from dask._task_spec import Task
from torch import nn

from workbench.arrays.boxes import Chunks, in_proportion
from workbench.arrays.checks import as_dask
from workbench.arrays.costs import (
    BYTES_PER_S,
    FLOPS_PER_S,
    TASK_S,
    kept_bytes,
    tiled_flops,
)
from workbench.arrays.graphs import Graph, numpy_type, stages, titles
from workbench.arrays.layouts import mixed
from workbench.arrays.network import Network, record
from workbench.arrays.operators import on_meta
from workbench.arrays.receptive import Field, receptive_field
from workbench.arrays.resident import Resident, in_batches
from workbench.errors import PlanError
from workbench.layers.ghosts import on_meta as model_on_meta
from workbench.recipe import make_model

STRATEGIES = ("auto", "data", "spatial")
BATCH, GATHERED = 64, 512
"""Samples in one pass of the model, and in one task.

Larger passes are no faster on a CPU, where what a layer makes should stay near; larger tasks pay
Dask's time for a task less often.
"""
_BATCH_BYTES = 64 * 2**20
TILE = 1024
MOST_WHOLE_BYTES = 2**30
"""A layer that needs all positions of a cut dim at once gets an array of this size at most."""


@dataclass(frozen=True)
class Application:
    """A model on an array, laid out.

    Attributes
    ----------
    strategy:
        ``"data"`` or ``"spatial"``.
    array:
        The lazy result.
    way:
        ``"batches"``, ``"tiles"`` (the whole network for each tile) or ``"layers"``.
    field:
        The receptive field of the model along each cut dim; of ``"spatial"`` only.
    lines:
        What was chosen and why, a sentence each.
    """

    strategy: str
    array: da.Array
    way: str
    field: tuple[Field, ...] = ()
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a few lines."""
        fields = [f"receptive field along {field}" for field in self.field]
        return "\n".join([f"{self.strategy}, by {self.way}", *fields, *self.lines])


def explain(
    model: nn.Module | Callable[[], nn.Module],
    x: Any,
    strategy: str = "auto",
    batch_size: int | None = None,
    *,
    tile: int | Sequence[int] | None = None,
    way: str = "auto",
) -> Application:
    """Return how :func:`workbench.apply` carries out a model on an array, and the result.

    Arguments are the same. Print it: it has the receptive field, and what the ways would cost.
    """
    made = make_model(model)
    title = _title(made)
    x = as_dask(x, f"apply({title})")
    _check(strategy, batch_size, way)
    check_model(made, x, title)
    if strategy == "auto":
        cut = [dim for dim in range(2, x.ndim) if len(x.chunks[dim]) > 1]
        if cut or tile is not None:
            chosen = _spatial(made, x, title, tile, way)
            why = (
                f"auto took spatial: dim {cut[0]} of the array is in chunks"
                if cut
                else ("auto took spatial: tiles are asked for")
            )
        else:
            chosen = _data(made, x, title, batch_size)
            why = "auto took data: every sample lies in one chunk"
        return _with(chosen, why)
    if strategy == "data":
        return _data(made, x, title, batch_size)
    return _spatial(made, x, title, tile, way)


def _with(chosen: Application, line: str) -> Application:
    return Application(
        chosen.strategy, chosen.array, chosen.way, chosen.field, (*chosen.lines, line)
    )


def _title(model: nn.Module) -> str:
    return type(model).__name__


def _check(strategy: str, batch_size: int | None, way: str) -> None:
    if strategy not in STRATEGIES:
        allowed = ", ".join(repr(s) for s in STRATEGIES)
        raise PlanError(f"apply(strategy={strategy!r}): there is no such strategy; use {allowed}.")
    if way not in ("auto", "tiles", "layers"):
        raise PlanError(f"apply(way={way!r}): there is no such way; use 'auto', 'tiles', 'layers'.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise PlanError(f"apply(batch_size={batch_size!r}): a batch has at least 1 sample.")


def check_model(model: nn.Module, x: da.Array, title: str) -> None:
    """Check that a model is in eval mode and computes in the type of an array.

    Raises
    ------
    PlanError
        If not.
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        where = f"its layer {training[0]!r}" if training[0] else "it"
        raise PlanError(
            f"apply({title}): {where} is in training mode, in which dropout and batch statistics "
            "make the result depend on chance and on the batch; call model.eval() first."
        )
    if x.ndim == 0:
        raise PlanError(f"apply({title}) needs an array with samples in dim 0, and it has no dim.")
    own = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), None)
    given = on_meta(x).dtype
    if own is not None and given.is_floating_point and given != own:
        asked = str(own).removeprefix("torch.")
        raise PlanError(
            f"apply({title}): the array is {x.dtype} and the model's parameters are {asked}; use "
            f'x.astype("{asked}").'
        )


# By samples


def output_of(model: nn.Module, x: da.Array, title: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape (for one sample) and type of a model's outputs, without computing.

    Raises
    ------
    PlanError
        If the model does not take such samples, or gives other than one tensor with a row of
        outputs for each of them.
    """
    shapes = []
    for samples in (2, 3):
        shape = (samples, *x.shape[1:])
        dtype = on_meta(x[:0]).dtype
        try:
            with torch.inference_mode():
                try:
                    out = model_on_meta(model)(torch.empty(shape, dtype=dtype, device="meta"))
                except Exception:  # it looks at values: zeros tell
                    out = model(torch.zeros(shape, dtype=dtype))
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise PlanError(
                f"apply({title}): the model does not take {samples} samples of shape "
                f"{x.shape[1:]} and type {x.dtype}: {first}."
            ) from error
        if not isinstance(out, torch.Tensor):
            raise PlanError(
                f"apply({title}): the model returns a {type(out).__name__}, and a dask array is "
                "one array; wrap it so that it returns the one tensor that you want."
            )
        shapes.append(tuple(out.shape))
    two, three = shapes
    if two[:1] != (2,) or three[:1] != (3,) or two[1:] != three[1:]:
        raise PlanError(
            f"apply({title}, strategy='data') needs a row of outputs for each sample, and for 2 "
            f"samples the model gives {two}, for 3 {three}."
        )
    return two[1:], numpy_type(out.dtype)


def batch_sizes(x: da.Array, asked: int | None) -> tuple[int, int]:
    """Return how many samples to put through the model at once, and how many in one task."""
    fit = max(1, _BATCH_BYTES // max(1, prod(x.shape[1:]) * x.dtype.itemsize))
    size = asked or min(BATCH, fit)
    return size, max(size, min(GATHERED, fit))


def _data(model: nn.Module, x: da.Array, title: str, batch_size: int | None) -> Application:
    rest, dtype = output_of(model, x, title)
    resident = Resident.of(model)
    return by_batches(resident, resident.token, x, title, batch_size, rest, dtype)


def by_batches(
    task: Callable[[Any], Task] | Resident,
    token: str,
    x: da.Array,
    title: str,
    batch_size: int | None,
    rest: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Application:
    """Lay out a model by batches of samples; ``task`` is the model, or brings it."""
    size, gather = batch_sizes(x, batch_size)
    made = in_batches(
        task, x, size=size, gather=gather, title=title, token=token, rest=rest, dtype=dtype
    )
    lines = (
        f"{x.shape[0]:,} samples in {x.numblocks[0]} chunks make {made.numblocks[0]} tasks of at "
        f"most {max(made.chunks[0], default=0)}, {size} through the model at once",
        "each worker gets the model once",
    )
    return Application("data", made, "batches", (), lines)


# By tiles


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


def _spatial(model: nn.Module, x: da.Array, title: str, tile: Any, way: str) -> Application:
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
            if nbytes > MOST_WHOLE_BYTES and _summed(node, given) is None:
                where = f"layer {node.where!r}" if node.where else "its code"
                positions = " and ".join(map(str, dims))
                raise PlanError(
                    f"apply({title}, strategy='spatial'): {where} ({node.title}) needs all "
                    f"positions of dim {positions} of an array of {node.shapes[place]} at once, "
                    f"{nbytes / 2**30:.1f} GiB where at most {MOST_WHOLE_BYTES / 2**30:.0f} GiB is "
                    "given to one task; use strategy='data', or a smaller array."
                )


def _summed(node: Any, given: Any) -> Any:
    from workbench.arrays.layouts import summed_cuts

    return summed_cuts(node, given)


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
