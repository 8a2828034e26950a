"""Syncs between the ranks of one host, and the slots in which data waits for its readers."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NoReturn

import torch
from torch import Tensor

from workbench.comm.calls import Call, in_words
from workbench.comm.segment import BLOCK_WORDS, Late, Segment, fence

BUFFERS = 4
"""Slots per rank, used in turn."""

SLOT_BYTES = 1 << 20
"""Bytes of one slot."""

CALL_WORDS = 8
"""Where in a rank's block its last calls are described, four words each, one per buffer."""

SHAPE_WORDS = 80
"""Words per rank and buffer in which an all_gather tells its shape: torch allows 64 dims."""


class Staging:
    """Numbered syncs, and one slot per rank and sync that only this rank writes.

    At each sync a rank writes data for its peers into its slot, announces the number in its own
    cache line, waits until all peers have announced it, and reads their slots. Two rules make
    four slots in turn enough: a rank announces sync ``s`` only when it has read everything of
    ``s - 2``, and writes for ``s`` only when all peers have announced ``s - 2``; then they have
    read ``s - 4``, the slot's last use. So a rank can be one sync ahead of its peers, and small
    delays do not add up.

    The first sync of a call also compares what the ranks asked for. Descriptions are written in
    turn as well, which is safe for the same reason.

    Parameters
    ----------
    fail:
        Called with a sentence when a peer is gone, late or asked for something else; must raise.
    """

    def __init__(
        self,
        segment: Segment,
        words_start: int,
        bytes_start: int,
        timeout_s: float,
        fail: Callable[[str], NoReturn],
    ) -> None:
        self.rank, self.size = rank, size = segment.rank, segment.size
        self.sync = 0
        self._segment = segment
        self._words = segment.words
        self._shapes_start = words_start
        self._timeout_s = timeout_s
        self._fail = fail
        self._flag = rank * BLOCK_WORDS
        self._peer_flags = [peer * BLOCK_WORDS for peer in range(size) if peer != rank]
        memory = segment.bytes[bytes_start:][: size * BUFFERS * SLOT_BYTES]
        self._memory = memory.view(BUFFERS, size, SLOT_BYTES)
        self._slots: dict[tuple[torch.dtype, int], list[list[Tensor]]] = {}
        self._regions: dict[torch.dtype, list[list[list[Tensor]]]] = {}

    @staticmethod
    def words(size: int) -> int:
        """Return how many words of the segment this needs for ``size`` ranks."""
        return size * BUFFERS * SHAPE_WORDS

    @staticmethod
    def nbytes(size: int) -> int:
        """Return how many bytes of the segment this needs for ``size`` ranks."""
        return size * BUFFERS * SLOT_BYTES

    def slots(self, sync: int, dtype: torch.dtype, numel: int) -> list[Tensor]:
        """Return the first ``numel`` elements of all ranks' slots for ``sync``, by rank."""
        found = self._slots.get((dtype, numel))
        if found is None:
            if len(self._slots) > 200:
                self._slots.clear()
            nbytes = numel * dtype.itemsize
            found = [[slot[:nbytes].view(dtype) for slot in ranks] for ranks in self._memory]
            self._slots[dtype, numel] = found
        return found[sync % BUFFERS]

    def region_numel(self, dtype: torch.dtype) -> int:
        """Return how many elements fit into one region of a slot."""
        return SLOT_BYTES // self.size // 64 * 64 // dtype.itemsize

    def regions(self, sync: int, dtype: torch.dtype) -> list[list[Tensor]]:
        """Return the slots for ``sync`` cut into one region per rank: ``[writer][reader]``."""
        found = self._regions.get(dtype)
        if found is None:
            nbytes = SLOT_BYTES // self.size // 64 * 64
            found = [
                [[region.view(dtype) for region in slot.split(nbytes)[: self.size]]
                 for slot in ranks]
                for ranks in self._memory
            ]  # fmt: skip
            self._regions[dtype] = found
        return found[sync % BUFFERS]

    def announce(self, call: Call | None = None) -> int:
        """Tell the peers that everything for the next sync is written; return its number.

        ``call`` is what the program asked for, given with the first sync of a call.
        """
        words = self._words
        self.sync = sync = self.sync + 1
        if call is not None:
            start = self._flag + CALL_WORDS + sync % BUFFERS * 4
            words[start], words[start + 1], words[start + 2] = call
        fence()
        words[self._flag] = sync
        return sync

    def settle(self, sync: int) -> None:
        """Wait until all peers have announced ``sync``."""
        words = self._words
        for flag in self._peer_flags:
            if words[flag] < sync:
                break
        else:
            fence()
            return

        def missing() -> list[int]:
            return [flag // BLOCK_WORDS for flag in self._peer_flags if words[flag] < sync]

        try:
            self._segment.wait(missing, self._timeout_s)
        except Late as late:
            self._fail(str(late))
        fence()

    def arrive(self, sync: int, call: Call) -> tuple[float, float]:
        """Settle the first sync of ``call``, compare, and return when waiting began and ended."""
        start = perf_counter()
        self.settle(sync)
        stop = perf_counter()
        words = self._words
        offset = CALL_WORDS + sync % BUFFERS * 4
        for flag in self._peer_flags:
            word = flag + offset
            if (words[word], words[word + 1], words[word + 2]) != call:
                theirs = in_words((words[word], words[word + 1], words[word + 2]))
                ranks = self._segment.ranks
                self._fail(
                    f"rank {ranks[self.rank]} asked for {in_words(call)}, "
                    f"rank {ranks[flag // BLOCK_WORDS]} for {theirs}"
                )
        return start, stop

    def put_shape(self, shape: tuple[int, ...]) -> int:
        """Write the own tensor's shape for the next sync; return the number of that sync."""
        word = self._shape_word(self.rank, self.sync + 1)
        for offset, number in enumerate((len(shape), *shape)):
            self._words[word + offset] = number
        return self.sync + 1

    def shape(self, rank: int, sync: int) -> tuple[int, ...]:
        """Return the shape that ``rank`` has written for ``sync``."""
        word = self._shape_word(rank, sync)
        return tuple(self._words[word + 1 : word + 1 + self._words[word]])

    def _shape_word(self, rank: int, sync: int) -> int:
        return self._shapes_start + (sync % BUFFERS * self.size + rank) * SHAPE_WORDS
