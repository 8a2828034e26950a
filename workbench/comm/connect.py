"""Which backend serves which ranks, and how a rank joins it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from workbench.comm.comm import Comm
from workbench.comm.threads import Table, ThreadComm

if TYPE_CHECKING:
    from torch.distributed import Store

Backend = Literal["solo", "shared memory", "gloo", "nccl"]


class SoloComm(ThreadComm):
    """The communicator of a run with one rank: nothing to say and nobody to wait for."""

    backend = "solo"

    def __init__(self, device_type: str = "cpu") -> None:
        super().__init__(0, Table(1), timeout_s=1.0, device_type=device_type)


def choose(host_ids: Sequence[str], device: str) -> Backend:
    """Return the fastest backend for ranks on these hosts, one entry per rank.

    ``host_ids`` must be equal exactly for ranks that can map the same memory (same machine, same
    boot, same process-id namespace). ``device`` is where the tensors are: "cpu" or "cuda".
    """
    if not host_ids:
        raise ValueError("a communicator needs at least 1 rank; got none")
    if len(host_ids) == 1:
        return "solo"
    if device.partition(":")[0] == "cuda":
        return "nccl"
    return "shared memory" if len(set(host_ids)) == 1 else "gloo"


def connect(
    backend: Backend,
    rank: int,
    size: int,
    *,
    fd: int | None = None,
    store: Store | None = None,
    device: str = "cpu",
    timeout_s: float = 60.0,
    address: str = "127.0.0.1",
) -> Comm:
    """Join the other ranks and return the communicator; every rank calls this.

    Parameters
    ----------
    fd:
        For "shared memory": a memfd that all ranks have open, empty before the first connects. It
        still belongs to the caller, who may close it when this returns.
    store:
        For "gloo" and "nccl": where the ranks find each other, see
        :func:`workbench.comm.torch_backend.file_store` and ``tcp_store``.
    address:
        For "gloo": the address of this host at which the other ranks reach it.

    Raises
    ------
    CommError
        A rank did not come within ``timeout_s``.
    """
    if backend == "solo":
        if size != 1:
            raise ValueError(f"backend 'solo' is for 1 rank; {size} were asked for")
        return SoloComm(device.partition(":")[0])
    if backend == "shared memory":
        from workbench.comm.shared_memory import SharedMemoryComm

        if fd is None:
            raise ValueError("backend 'shared memory' needs fd, a memfd that all ranks share")
        return SharedMemoryComm(rank, size, fd, timeout_s)
    if backend not in ("gloo", "nccl"):
        raise ValueError(f"no backend {backend!r}: use 'solo', 'shared memory', 'gloo' or 'nccl'")
    from workbench.comm.torch_backend import TorchComm

    if store is None:
        raise ValueError(f"backend {backend!r} needs store, by which its ranks find each other")
    return TorchComm(backend, rank, size, store, timeout_s, device=device, address=address)
