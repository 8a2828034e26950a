"""Collectives over torch.distributed: gloo between hosts, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from time import monotonic, perf_counter, sleep
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.comm.arithmetic import reduce_in_rank_order
from workbench.comm.calls import Call, code, in_words
from workbench.comm.comm import Comm, CommError, ReduceOp
from workbench.comm.rendezvous import file_store, tcp_store
from workbench.mesh import balanced

__all__ = ["TorchComm", "file_store", "tcp_store"]

WHOLE_BYTES = 1 << 16
"""Up to here every rank sends everything to all and adds it itself: one exchange less."""

LABEL_NUMBERS = 4 + 64
"""What goes before every message: the call, the number of dims and the shape (at most 64 dims)."""

LABEL_TAG, DATA_TAG = 1, 2


class TorchComm(Comm):
    """Collectives made of torch's point-to-point messages.

    Every collective is an exchange of messages between all pairs, as many bytes as the ring moves.
    Each message has a label in front, so a rank that asks for something else is found out before
    its data are touched (gloo's own collectives end the process when sizes differ). Sums are
    added here in rank order: the bits are those of the other backends.

    With NCCL one rank has one GPU, reductions of common dtypes use NCCL's own all_reduce, and every
    call returns when the GPU has finished it. Waiting for peers cannot be told from moving data
    there: ``comm_s`` includes it, and what was still being computed on the GPU before the call.

    Parameters
    ----------
    store:
        Where the ranks find each other: :func:`file_store` on one host, else :func:`tcp_store`.
    device:
        Where the tensors are: "cpu" for gloo, "cuda" or "cuda:1" for NCCL.
    address:
        For gloo, the address of this host on which the other ranks reach it.

    Raises
    ------
    CommError
        From the constructor: the ranks did not find each other within ``timeout_s``.
    """

    def __init__(
        self,
        backend: Literal["gloo", "nccl"],
        rank: int,
        size: int,
        store: dist.Store,
        timeout_s: float,
        *,
        device: str = "cpu",
        address: str = "127.0.0.1",
    ) -> None:
        super().__init__(rank, size, timeout_s)
        self.backend = backend
        self.device = torch.device(device)
        self.device_type = self.device.type
        if (backend == "nccl") != (self.device_type == "cuda"):
            raise ValueError(f"{backend} does not move tensors on {device}: use cpu with gloo")
        self._others = [other for other in range(size) if other != rank]
        self._timeout = timedelta(seconds=timeout_s)
        try:
            make = self._make_nccl if backend == "nccl" else self._make_gloo
            self._group = make(dist.PrefixStore(f"workbench-{backend}", store), address)
            self._meet((code("start"), size, 0))
        except RuntimeError as error:
            self.close()
            if isinstance(error, CommError):
                raise
            raise CommError(
                f"rank {rank}, start: the {size} ranks did not find each other within "
                f"{timeout_s:g} s: {_first_line(error)}"
            ) from error

    def _make_gloo(self, store: dist.Store, address: str) -> dist.ProcessGroup:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = self._timeout
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        return dist.ProcessGroupGloo(store, self.rank, self.size, options)

    def _make_nccl(self, store: dist.Store, _address: str) -> dist.ProcessGroup:
        if self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(self.device)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        group = dist.ProcessGroup(store, self.rank, self.size)
        group._set_default_backend(dist.ProcessGroup.BackendType.NCCL)
        nccl = dist.ProcessGroupNCCL(store, self.rank, self.size, options)
        nccl._set_sequence_number_for_group()
        group._register_backend(self.device, dist.ProcessGroup.BackendType.NCCL, nccl)
        return group

    # Collectives.

    def _all_reduce(self, flat: Tensor, op: ReduceOp) -> None:
        call = (code("all_reduce", op, flat.dtype), flat.numel(), 0)
        if self.backend == "nccl" and flat.dtype in NCCL_DTYPES:
            self._meet(call)
            options = dist.AllreduceOptions()
            options.reduceOp = NCCL_OPERATORS[op]
            self._finish([(self._group.allreduce([flat], options), None)])
        elif flat.numel() * flat.element_size() <= WHOLE_BYTES:
            by_rank = [torch.empty_like(flat) for _ in range(self.size)]
            by_rank[self.rank] = flat
            incoming = {other: by_rank[other] for other in self._others}
            self._swap(call, dict.fromkeys(self._others, flat), incoming)
            reduce_in_rank_order(by_rank, op, out=torch.empty_like(flat))
        else:
            share = self._reduce_scatter(flat, op)
            parts = self._parts(flat)
            parts[self.rank].copy_(share)
            incoming = {other: parts[other] for other in self._others}
            self._move(dict.fromkeys(self._others, share), incoming)

    def _reduce_scatter(self, flat: Tensor, op: ReduceOp) -> Tensor:
        parts = self._parts(flat)
        own = parts[self.rank]
        by_rank = [torch.empty_like(own) for _ in range(self.size)]
        by_rank[self.rank] = own
        self._swap(
            (code(self._operation, op, flat.dtype), flat.numel(), 0),
            {other: parts[other] for other in self._others},
            {other: by_rank[other] for other in self._others},
        )
        share = torch.empty_like(own)
        reduce_in_rank_order(by_rank, op, out=share)
        return share

    def _all_gather(self, flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        shapes = self._meet((code("all_gather", "", flat.dtype), 0, 0), shape)
        gathered = [flat.new_empty(shapes.get(rank, shape)) for rank in range(self.size)]
        gathered[self.rank].view(-1).copy_(flat)
        incoming = {other: gathered[other].view(-1) for other in self._others}
        self._move(dict.fromkeys(self._others, flat), incoming)
        return gathered

    def _broadcast(self, flat: Tensor, root: int) -> None:
        self._meet((code("broadcast", "", flat.dtype), flat.numel(), root))
        if self.rank == root:
            self._move(dict.fromkeys(self._others, flat), {})
        else:
            self._move({}, {root: flat})

    def _barrier(self) -> None:
        self._meet((code("barrier"), 0, 0))

    def _exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        pass
