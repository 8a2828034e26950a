"""A run's model on a dask array: the weights stay on the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import torch
from dask._task_spec import List, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from workbench.arrays.application import check_model
from workbench.arrays.checks import as_inputs
from workbench.arrays.explaining import explain
from workbench.arrays.resident import Resident, weights_name
from workbench.arrays.samples import by_batches, output_of

if TYPE_CHECKING:
    from workbench.run import Run


def predicted_by(run: Run, x: Any, strategy: str, batch_size: int | None) -> da.Array:
    """Return the outputs of a run's model; see :func:`workbench.predict`."""
    state = {n: a for kind in ("parameter", "buffer") for n, a in run.state(kind).items()}
    model = run.work.make_model().eval()
    if strategy != "data":
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        (values,) = dask.compute(state)
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(torch.from_numpy(np.array(value)))
        return explain(model, x, strategy, batch_size).array
    title = type(model).__name__
    inputs = as_inputs(x, f"predict({title})", run.work.input_names)
    check_model(model, inputs, title)
    rest, dtype = output_of(model, inputs, title)
    whole = {name: array.rechunk(-1) for name, array in state.items()}
    token = tokenize(run.run_id, list(whole), [array.name for array in whole.values()])
    payload = run.work.payload()

    def task(key: str) -> Task:
        refs = List(*(TaskRef((a.name, *(0,) * a.ndim)) for a in whole.values()))
        return Task(key, _resident, payload, token, list(whole), refs)

    made = by_batches(task, token, inputs, title, batch_size, rest, dtype).array
    merged = HighLevelGraph.merge(made.dask, *(array.dask for array in whole.values()))
    dependencies = dict(merged.dependencies)
    dependencies[weights_name(title, token)] = {array.name for array in whole.values()}
    graph = HighLevelGraph(merged.layers, dependencies)
    return da.Array(graph, made.name, made.chunks, meta=made._meta)


def _resident(payload: bytes, token: str, names: list[str], values: list[Any]) -> Resident:
    return Resident(payload, token, dict(zip(names, values, strict=True)))
