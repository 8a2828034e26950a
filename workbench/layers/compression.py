"""Fewer bytes of gradients between replicas: in bfloat16, as low-rank factors, or the largest ones.

What a rank did not send it keeps and adds to its gradients of the next step ("error feedback",
Seide et al., 2014; Karimireddy et al., 2019). All ranks get the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from workbench.comm.comm import Comm
from workbench.plan.replicas import Compression


class Reducer(Protocol):
    """Adds up one bucket over replicas."""

    def __call__(self, bucket: Tensor, name: str) -> None:
        """Replace the flat ``bucket`` by its sum over ranks, as far as that is sent."""


def reducer(
    compression: Compression, shapes: Sequence[tuple[int, ...]], like: Tensor, comm: Comm, seed: int
) -> Reducer:
    """Return what adds up a bucket of gradients of these shapes, with numbers as in ``like``.

    Every rank of ``comm`` makes one at the same time, with the same ``seed``.
    """
    if compression.kind == "bf16":
        return InBfloat16(like, comm)
    if compression.kind == "powersgd":
        return LowRank(compression, shapes, like, comm, seed)
    return Largest(compression, like, comm)


class InBfloat16:
    """All numbers, rounded to bfloat16 before and after the sum."""

    def __init__(self, like: Tensor, comm: Comm) -> None:
        self.comm = comm
        self.sent = comm.allocate(like.numel(), torch.bfloat16)

    def __call__(self, bucket: Tensor, name: str) -> None:
        """Add up ``bucket`` over ranks."""
        self.sent.copy_(bucket)
        self.comm.all_reduce(self.sent, name=f"{name}, in bf16")
        bucket.copy_(self.sent)


class Largest:
    """The largest entries with their places (Stich et al., "Sparsified SGD with memory", 2018).

    Ranks choose each their own, so that an all_gather is needed where a sum would do.
    """

    def __init__(self, compression: Compression, like: Tensor, comm: Comm) -> None:
        self.comm, self.count = comm, compression.largest(like.numel())
        self.missed = torch.zeros_like(like)

    def __call__(self, bucket: Tensor, name: str) -> None:
        """Add up the largest entries of ``bucket`` over ranks."""
        self.missed += bucket
        places = self.missed.abs().topk(self.count, sorted=False).indices
        values = self.missed[places]
        self.missed[places] = 0
        every = self.comm.all_gather(values, name=f"{name}, largest")
        where = self.comm.all_gather(places.int(), name=f"{name}, their places")
        bucket.zero_()
        for of_rank, at in zip(every, where, strict=True):
            bucket[at.long()] += of_rank  # a rank names no place twice


class LowRank:
    """PowerSGD: one step of subspace iteration for each matrix (Vogels et al., NeurIPS 2019).

    The second factors of a step begin the next one ("warm start"), so that the subspace follows
    the gradients. A gradient of more than two dims is a matrix of its first dim and all others.
    """

    def __init__(
        self,
        compression: Compression,
        shapes: Sequence[tuple[int, ...]],
        like: Tensor,
        comm: Comm,
        seed: int,
    ) -> None:
        self.comm, self.shapes = comm, tuple(shapes)
        self.ranks = [compression.columns(shape) for shape in shapes]
        self.left = like.new_zeros(compression.left(shapes))
        self.right = like.new_zeros(compression.right(shapes))
        source = torch.Generator().manual_seed(seed)  # the same on all ranks
        self.right.copy_(torch.randn(self.right.numel(), generator=source, dtype=like.dtype))
        sizes = [torch.Size(shape).numel() if r else 0 for shape, r in self._each()]
        self.missed = [like.new_zeros(size) for size in sizes]

    def _each(self) -> list[tuple[tuple[int, ...], int]]:
        return list(zip(self.shapes, self.ranks, strict=True))

    def __call__(self, bucket: Tensor, name: str) -> None:
        """Replace ``bucket`` by the sum over ranks of what its factors say."""
        matrices, firsts, seconds, whole = self._views(bucket)
        for matrix, first, second, missed in zip(
            matrices, firsts, seconds, self._missed(), strict=True
        ):
            matrix += missed
            torch.mm(matrix, second, out=first)
        for piece, room in whole:
            room.copy_(piece)
        self.comm.all_reduce(self.left, name=f"{name}, first factors")
        for matrix, first, second, missed in zip(
            matrices, firsts, seconds, self._missed(), strict=True
        ):
            first.copy_(torch.linalg.qr(first).Q)
            torch.mm(matrix.t(), first, out=second)
            torch.addmm(matrix, first, second.t(), alpha=-1.0, out=missed)
        self.comm.all_reduce(self.right, name=f"{name}, second factors")
        for matrix, first, second in zip(matrices, firsts, seconds, strict=True):
            torch.mm(first, second.t(), out=matrix)
        for piece, room in whole:
            piece.copy_(room)

    def _missed(self) -> list[Tensor]:
        pairs = zip(self._each(), self.missed, strict=True)
        return [missed.view(shape[0], -1) for (shape, r), missed in pairs if r]

    def _views(
        self, bucket: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Return matrices, their first and second factors, and pairs of what is sent as it is."""
        matrices, firsts, seconds, whole = [], [], [], []
        place = left = right = 0
        for shape, r in self._each():
            numel = torch.Size(shape).numel()
            piece = bucket[place : place + numel]
            place += numel
            if not r:
                whole.append((piece, self.left[left : left + numel]))
                left += numel
                continue
            rows, columns = shape[0], numel // shape[0]
            matrices.append(piece.view(rows, columns))
            firsts.append(self.left[left : left + rows * r].view(rows, r))
            seconds.append(self.right[right : right + columns * r].view(columns, r))
            left, right = left + rows * r, right + columns * r
        return matrices, firsts, seconds, whole
