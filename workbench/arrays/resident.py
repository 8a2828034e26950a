"""A model that stays on every worker: sent once, loaded once in each process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from io import BytesIO
from threading import Lock
from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
import torch
from dask._task_spec import List, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from torch import Tensor, nn

from workbench.arrays.network import as_numpy
from workbench.arrays.threads import few_threads
from workbench.mesh import balanced
from workbench.pickling import dump, load
from workbench.recipe import load_payload

_KEPT = 4
_loaded: OrderedDict[str, nn.Module] = OrderedDict()
_lock = Lock()


class Resident:
    """A model as bytes, which a process loads when it is first asked for.

    Dask moves the bytes to each worker that needs them, once. Models of user's own code travel with
    that code. With a ``state`` the bytes are a workload's payload, and the model is made anew and
    given that state.
    """

    def __init__(self, data: bytes, token: str, state: dict[str, np.ndarray] | None = None) -> None:
        self.data, self.token, self.state = data, token, state

    @classmethod
    def of(cls, model: nn.Module) -> Resident:
        """Return a model that is set to what it computes now."""
        return cls(dump({"model": model}), token_of(model))

    @property
    def model(self) -> nn.Module:
        """The model, in eval mode; the same object for all tasks of the process."""
        with _lock:
            if self.token not in _loaded:
                _loaded[self.token] = self._load()
                while len(_loaded) > _KEPT:
                    _loaded.popitem(last=False)
            _loaded.move_to_end(self.token)
            return _loaded[self.token]

    def _load(self) -> nn.Module:
        if self.state is None:
            model: nn.Module = load(self.data)["model"]
        else:
            model = load_payload(self.data).make_model()
            own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            with torch.no_grad():
                for name, value in self.state.items():
                    own[name].copy_(torch.from_numpy(np.array(value)))
        return model.eval()

    def __sizeof__(self) -> int:
        state = sum(x.nbytes for x in self.state.values()) if self.state else 0
        return len(self.data) + state


class _Fingerprint(cloudpickle.Pickler):
    """Pickles all of a model but its tensors, of which only the numbers count.

    Torch's own pickles of tensors have in them where these lie in memory.
    """

    def persistent_id(self, x: Any) -> Any:
        return ("tensor", tokenize(str(x.dtype), as_numpy(x))) if isinstance(x, Tensor) else None


def token_of(model: nn.Module) -> str:
    """Return the same token for models that are made alike and have the same numbers."""
    written = BytesIO()
    _Fingerprint(written).dump(model)
    found: str = tokenize(written.getvalue())
    return found


def batches(x: da.Array, most: int) -> list[list[int]]:
    """Return numbers of consecutive chunks of samples, each list with at most ``most`` samples.

    A chunk is never torn: one that is larger makes a list by itself.
    """
    found: list[list[int]] = []
    total = 0
    for number, samples in enumerate(x.chunks[0]):
        if not found or total + samples > most:
            found.append([])
            total = 0
        found[-1].append(number)
        total += samples
    return found


def samples_of(parts: Sequence[Any]) -> np.ndarray:
    """Return the samples of some chunks as one array, which the model's code may write into."""
    own = [np.asarray(part) for part in parts]
    x = own[0] if len(own) == 1 else np.concatenate(own)
    if not x.flags.writeable or any(step < 0 for step in x.strides):
        x = x.copy()
    return x


def passes(samples: int, size: int) -> list[slice]:
    """Return the samples of each pass of the model, at most ``size`` in each."""
    count = -(-samples // size)
    return [slice(*balanced(samples, count, number)) for number in range(count)]


def run_batch(
    resident: Resident,
    size: int,
    parts: Sequence[Sequence[Any]],
    rest: tuple[int, ...],
    dtype: str,
) -> np.ndarray:
    """Return the outputs for the samples of some chunks of each input, ``size`` at a time."""
    inputs = [samples_of(chunks) for chunks in parts]
    made = np.empty((len(inputs[0]), *rest), dtype)
    with few_threads(), torch.inference_mode():
        for here in passes(len(made), size):
            made[here] = resident.model(*(torch.from_numpy(x[here]) for x in inputs)).numpy()
    return made


def weights_name(title: str, token: str) -> str:
    """Return the name of the task that brings a model."""
    return f"weights_{title}-{token}"


def in_batches(
    task: Callable[[Any], Task] | Resident,
    inputs: Sequence[da.Array],
    *,
    size: int,
    gather: int,
    title: str,
    token: str,
    rest: tuple[int, ...],
    dtype: np.dtype[Any],
) -> da.Array:
    """Return a model's outputs for all samples of its inputs, chunked alike in dim 0, lazily.

    ``task`` is the model, or makes the task with the given key that brings it. A task takes the
    chunks of at most ``gather`` samples, and puts ``size`` of them through the model at once.
    """
    inputs = [x.rechunk({dim: -1 for dim in range(1, x.ndim)}) for x in inputs]
    x, names = inputs[0], [x.name for x in inputs]
    program = weights_name(title, token)
    brings = task(program) if callable(task) else Task(program, _itself, task)
    name = f"{title}-{tokenize(token, *names, size, gather)}"
    layer: dict[Any, Task] = {}
    sizes = []
    for number, chunks in enumerate(batches(x, gather)):
        key = (name, number, *(0 for _ in rest))
        refs = List(
            *(
                List(*(TaskRef((x.name, chunk, *(0 for _ in x.shape[1:]))) for chunk in chunks))
                for x in inputs
            )
        )
        layer[key] = Task(key, run_batch, TaskRef(program), size, refs, rest, str(dtype))
        sizes.append(sum(x.chunks[0][chunk] for chunk in chunks))
    given = HighLevelGraph.merge(*(x.dask for x in inputs))
    graph = HighLevelGraph(
        {**given.layers, program: {program: brings}, name: layer},
        {**given.dependencies, program: set(), name: {*names, program}},
    )
    return da.Array(
        graph,
        name,
        (tuple(sizes), *((n,) for n in rest)),
        meta=np.empty((0,) * (1 + len(rest)), dtype),
    )


def _itself(resident: Resident) -> Resident:
    return resident
