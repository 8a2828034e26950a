"""What a collective accepts, and how a tensor of any layout becomes a flat one and back."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

ReduceOp = Literal["sum", "max", "min"]

REDUCIBLE = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
    torch.complex128, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
"""What torch can add on every device. Any other dtype can be moved, not reduced."""


def check_device(tensor: Tensor, device_type: str, backend: str) -> None:
    """Raise ValueError if ``tensor`` is not where the backend can reach it."""
    if tensor.device.type != device_type:
        raise ValueError(
            f"the {backend} communicator moves tensors on {device_type}, not on {tensor.device}: "
            f"move the tensor there first"
        )


def check_reduction(tensor: Tensor, op: ReduceOp) -> None:
    """Raise ValueError if ``op`` of such tensors does not exist."""
    if op not in get_args(ReduceOp):
        raise ValueError(f"no reduction {op!r}: use one of {', '.join(get_args(ReduceOp))}")
    if op != "sum" and tensor.dtype.is_complex:
        raise ValueError(f"{op} of {tensor.dtype}: complex numbers have no order, only a sum")
    if tensor.dtype not in REDUCIBLE:
        raise ValueError(f"torch cannot add {tensor.dtype}: convert the tensor first")


def check_peer(what: str, peer: int, rank: int, size: int) -> None:
    """Raise ValueError if ``peer`` is not another rank."""
    if not 0 <= peer < size or peer == rank:
        others = ", ".join(str(other) for other in range(size) if other != rank) or "none"
        raise ValueError(f"rank {rank} cannot {what} rank {peer}: the other ranks are {others}")


def flatten(tensor: Tensor) -> Tensor:
    """Return the elements in order as one dim: the tensor's own memory, or else a copy."""
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    return plain.contiguous().view(-1)


def put_back(tensor: Tensor, flat: Tensor) -> None:
    """Copy ``flat`` into ``tensor`` if :func:`flatten` had to make a copy."""
    if flat.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(flat.view(tensor.shape))
