"""Collectives between processes of one host, over memory that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.comm.arithmetic import reduce_in_rank_order
from workbench.comm.calls import code
from workbench.comm.comm import Comm, ReduceOp
from workbench.comm.mailbox import Mailbox
from workbench.comm.segment import BLOCK_WORDS, PAGE, Late, Segment
from workbench.comm.staging import SLOT_BYTES, Staging
from workbench.mesh import balanced

WHOLE_BYTES = 1 << 16
"""Up to here every rank adds everything itself: one sync less, and no result to hand out."""

PIECE_BYTES = 1 << 17
"""Piece of allocated memory that is added and handed out while it is in the cache."""


@dataclass(frozen=True, slots=True)
class _Symmetric:
    """One call of ``allocate``: the same array once per rank, all mapped here."""

    place: int
    first: int
    stop: int
    by_rank: tuple[Tensor, ...]


class SharedMemoryComm(Comm):
    """Collectives over one memfd that all ranks have open.

    Parameters
    ----------
    fd:
        A memfd, empty before the first rank comes. The caller may close it afterwards.

    Raises
    ------
    CommError
        From the constructor: a rank did not come within ``timeout_s``.
    """

    backend = "shared memory"

    def __init__(self, rank: int, size: int, fd: int, timeout_s: float) -> None:
        super().__init__(rank, size, timeout_s)
        shapes = size * BLOCK_WORDS
        rings = shapes + Staging.words(size)
        words = rings + Mailbox.words(size)
        slots = -(-8 * words // PAGE) * PAGE
        envelopes = slots + Staging.nbytes(size)
        nbytes = envelopes + Mailbox.nbytes(size)
        self._segment = segment = Segment(rank, size, fd, words, nbytes)
        self._staging = Staging(segment, shapes, slots, timeout_s, self._fail)
        self._mailbox = Mailbox(segment, rings, envelopes, timeout_s, self._fail)
        self._symmetric: list[_Symmetric] = []
        if not segment.sign_in():
            self._fail("this memory has been used by ranks before; every start needs new memory")
        self._meet(code("start"), size)
        try:
            segment.watch_peers()
        except Late as late:
            self._fail(str(late))

    # Reductions.

    def _all_reduce(self, flat: Tensor, op: ReduceOp) -> None:
        nbytes = flat.numel() * flat.element_size()
        if nbytes <= WHOLE_BYTES:
            self._all_reduce_at_once(flat, op)
        elif (symmetric := self._find(flat)) is not None:
            self._all_reduce_in_place(flat, op, symmetric)
        elif self.size == 2:
            self._all_reduce_whole(flat, op)
        else:
            self._all_reduce_parts(flat, op)

    def _all_reduce_at_once(self, flat: Tensor, op: ReduceOp) -> None:
        """Let every rank see everything in one sync."""
        numel = flat.numel()
        staging = self._staging
        slots = staging.slots(staging.sync + 1, flat.dtype, numel)
        slots[self.rank].copy_(flat)
        self._meet(code("all_reduce", op, flat.dtype), numel)
        reduce_in_rank_order(slots, op, out=flat)

    def _all_reduce_whole(self, flat: Tensor, op: ReduceOp) -> None:
        """Let every rank see everything, piece by piece: for two ranks no more work than parts."""
        staging = self._staging
        call = (code("all_reduce", op, flat.dtype), flat.numel(), 0)
        pieces = flat.split(SLOT_BYTES // flat.element_size())
        first = staging.sync + 1

        def put(index: int) -> None:
            piece = pieces[index]
            slots = staging.slots(first + index, flat.dtype, piece.numel())
            slots[self.rank].copy_(piece)
            staging.announce(call if index == 0 else None)

        put(0)
        for index, piece in enumerate(pieces):
            if index + 1 < len(pieces):
                put(index + 1)
            self._settle(first + index, call if index == 0 else None)
            slots = staging.slots(first + index, flat.dtype, piece.numel())
            reduce_in_rank_order(slots, op, out=piece)

    def _all_reduce_parts(self, flat: Tensor, op: ReduceOp) -> None:
        """Let every owner add its part and hand the result out, piece by piece.

        Between its own results and its peers' contributions a rank needs only one sync per piece:
        the results of piece ``n`` travel with the contributions to piece ``n + 1``.
        """
        staging = self._staging
        call = (code("all_reduce", op, flat.dtype), flat.numel(), 0)
        pieces = self._pieces_by_owner(flat)
        count = len(pieces[0])
        first = staging.sync + 1

        def put(index: int) -> None:
            regions = staging.regions(first + index, flat.dtype)[self.rank]
            for owner in range(self.size):
                if owner != self.rank:
                    _copy(pieces[owner][index], regions[owner])

        put(0)
        staging.announce(call)
        for index in range(count + 1):
            if index + 1 < count:
                put(index + 1)
            self._settle(first + index, call if index == 0 else None)
            if index < count:
                result = staging.regions(first + index + 1, flat.dtype)[self.rank][self.rank]
                self._add_piece(pieces[self.rank][index], first + index, op, result)
                staging.announce()
            if index > 0:
                regions = staging.regions(first + index, flat.dtype)
                for owner in range(self.size):
                    piece = pieces[owner][index - 1]
                    if owner == self.rank:
                        continue
                    piece.copy_(regions[owner][owner][: piece.numel()])
