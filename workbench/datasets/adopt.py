"""Arrays that a user gave, taken over as dask arrays, and their dtype as the model wants it."""

from __future__ import annotations

import sys
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from workbench.datasets.dataset import CHUNKS
from workbench.errors import PlanError
from workbench.mesh import shares

MOST_CHUNKS = 100_000

CAST = "workbench-cast-"
"""How the names of arrays begin that :func:`cast` has made."""


def adopt(data: Any, what: str) -> da.Array:
    """Return ``data`` as a dask array of known size whose dim 0 counts the samples.

    Dask arrays stay as they are; numpy arrays and tensors are cut into a few chunks along dim 0.
    Byte order, strides and writability do not matter.

    Parameters
    ----------
    data:
        A dask array, a numpy array or a dense tensor of bools, integers or real numbers.
    what:
        What the sentence of an error calls it, such as ``"x"``.

    Raises
    ------
    PlanError
        if it is something else, is empty, or has an unknown size or far too many chunks.
    """
    if _is_tensor(data):
        data = _tensor_values(data, what)
    if isinstance(data, np.ma.MaskedArray):
        raise PlanError(f"{what} is a masked array; fill the gaps first, as in {what}.filled(0).")
    if isinstance(data, da.Array):
        _check_dask(data, what)
    elif not isinstance(data, np.ndarray):
        kind = f"{type(data).__module__.split('.')[0]}.{type(data).__name__}"
        raise PlanError(
            f"{what} is a {kind.removeprefix('builtins.')}; give a dask array, a numpy array or a "
            f"dense tensor, for instance numpy.asarray({what})."
        )
    if data.dtype.kind not in "biuf":
        raise PlanError(
            f"{what} has dtype {data.dtype}; give bools, integers or real numbers, for instance "
            f"{what}.astype('float32')."
        )
    if data.ndim == 0 or 0 in data.shape:
        raise PlanError(
            f"{what} has shape {tuple(data.shape)} and so holds no sample; dim 0 counts the "
            f"samples, and no dim may be 0."
        )
    if isinstance(data, da.Array):
        return data
    chunks = (shares(len(data), min(CHUNKS, len(data))), *((n,) for n in data.shape[1:]))
    return da.from_array(np.asarray(data), chunks=chunks)


def cast(array: da.Array, dtype: str) -> da.Array:
    """Return ``array`` with every chunk in ``dtype``, this machine's byte order and C order."""
    return da.map_blocks(
        _native,
        array,
        dtype,
        chunks=array.chunks,
        meta=np.empty((0,) * array.ndim, dtype),
        name=CAST + tokenize(array, dtype),
    )


def stored_chunks(array: da.Array) -> dict[tuple[int, ...], Any]:
    """Return the keys of an array's chunks that a cluster holds, by index, with or without a cast.

    Chunks that are still to be computed are left out.
    """
    from distributed import Future

    name = array.name
    if name.startswith(CAST):
        (name,) = array.dask.dependencies[name]
    layer = array.dask.layers.get(name, {})
    keys = [(name, *index) for index in np.ndindex(*array.numblocks)]
    return {key[1:]: layer[key].key for key in keys if isinstance(layer.get(key), Future)}


def _native(block: np.ndarray, dtype: str) -> np.ndarray:
    native = np.ascontiguousarray(block, dtype=dtype)
    # numpy lets a dim of one item keep a negative stride, which torch does not take.
    return native.copy() if min(native.strides, default=0) < 0 else native


def _is_tensor(data: Any) -> bool:
    # If nobody has imported torch yet, nobody can have made a tensor.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.Tensor)


def _tensor_values(tensor: Any, what: str) -> np.ndarray:
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        raise PlanError(
            f"{what} is a sparse or quantized tensor; give a dense one, as in {what}.to_dense()."
        )
    if tensor.device.type == "meta":
        raise PlanError(f"{what} is a tensor on the meta device, which has no values.")
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such dtype
        tensor = tensor.float()
    values: np.ndarray = tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    return values


def _check_dask(array: da.Array, what: str) -> None:
    if np.isnan(array.shape).any():
        raise PlanError(
            f"{what} is a dask array of unknown size {array.shape}; call "
            f"{what}.compute_chunk_sizes() first."
        )
    if not isinstance(array._meta, np.ndarray) or isinstance(array._meta, np.ma.MaskedArray):
        kind = f"{type(array._meta).__module__.split('.')[0]}.{type(array._meta).__name__}"
        raise PlanError(f"The chunks of {what} are {kind} arrays; plain numpy chunks are needed.")
    if array.npartitions > MOST_CHUNKS:
        raise PlanError(
            f"{what} has {array.npartitions:,} chunks, more than {MOST_CHUNKS:,}; rechunk it "
            f"first, as in {what}.rechunk('auto')."
        )
