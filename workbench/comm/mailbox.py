"""Messages from one rank to another on one host, through rings in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NoReturn

import torch
from torch import Tensor

from workbench.comm.calls import code, in_words
from workbench.comm.segment import Late, Segment, fence

RING = 4
"""Envelopes per ring: a message of up to that many is sent without waiting."""

ENVELOPE_BYTES = 1 << 17

PUT_WORD, TAKEN_WORD, LABEL_WORD, RING_WORDS = 0, 8, 16, 32
LABEL_WORDS = 3
"""What a message is, how many numbers it has, and a hash of its name."""

"""Words of a ring: envelopes put in so far (a cache line that the sender writes), envelopes taken
out so far (one that the receiver writes), and three words per envelope that label its message."""


class _Message:
    """One message under way: what the two ends have in common."""

    def __init__(
        self, peer: int, flat: Tensor, name: int, words: memoryview, memory: Tensor
    ) -> None:
        self.peer = peer
        self._bytes = flat.view(torch.uint8)
        self._label = (code("message", "", flat.dtype), flat.numel(), name)
        self._words = words
        self._memory = memory
        self._left = max(1, -(-self._bytes.numel() // ENVELOPE_BYTES))
        self._at = 0
        self.begun = False

    @property
    def done(self) -> bool:
        return self._left == 0

    def _next(self) -> Tensor:
        """Return the message's bytes for the next envelope, and count that envelope."""
        piece = self._bytes[self._at : self._at + ENVELOPE_BYTES]
        self._at += piece.numel()
        self._left -= 1
        self.begun = True
        return piece


class _Outgoing(_Message):
    def can_move(self) -> bool:
        return self._words[PUT_WORD] - self._words[TAKEN_WORD] < RING

    def move(self) -> None:
        """Put one envelope into the ring."""
        fence()
        number = self._words[PUT_WORD]
        slot = number % RING
        if not self.begun:
            label = LABEL_WORD + LABEL_WORDS * slot
            for offset, value in enumerate(self._label):
                self._words[label + offset] = value
        piece = self._next()
        self._memory[slot, : piece.numel()].copy_(piece)
        fence()
        self._words[PUT_WORD] = number + 1


class _Incoming(_Message):
    def can_move(self) -> bool:
        return self._words[PUT_WORD] > self._words[TAKEN_WORD]

    def move(self) -> None:
        """Take one envelope out of the ring; raise ValueError if it is not what was expected."""
        fence()
        number = self._words[TAKEN_WORD]
        slot = number % RING
        if not self.begun:
            label = LABEL_WORD + LABEL_WORDS * slot
            found = tuple(self._words[label + offset] for offset in range(LABEL_WORDS))
            if found != self._label:
                named = "" if found[2] == self._label[2] else " of another name"
                raise ValueError(
                    f"rank {self.peer} sent a {in_words((found[0], found[1], 0))}{named} where a "
                    f"{in_words((self._label[0], self._label[1], 0))} was expected"
                )
        piece = self._next()
        piece.copy_(self._memory[slot, : piece.numel()])
        fence()
        self._words[TAKEN_WORD] = number + 1


class Mailbox:
    """One ring of envelopes per ordered pair of ranks.

    A message is cut into envelopes; an empty message is one envelope. The sender counts what it
    has put in, the receiver what it has taken out, each in a word that the other only reads.

    Parameters
    ----------
    fail:
        Called with a sentence when a peer is gone, late or sent something else; must raise.
    """

    def __init__(
        self,
        segment: Segment,
        words_start: int,
        bytes_start: int,
        timeout_s: float,
        fail: Callable[[str], NoReturn],
    ) -> None:
        self._segment = segment
        self._words_start = words_start
        self._timeout_s = timeout_s
        self._fail = fail
        size = segment.size
        memory = segment.bytes[bytes_start:][: self.nbytes(size)]
        self._memory = memory.view(size * size, RING, ENVELOPE_BYTES)

    @staticmethod
    def words(size: int) -> int:
        """Return how many words of the segment this needs for ``size`` ranks."""
        return size * size * RING_WORDS

    @staticmethod
    def nbytes(size: int) -> int:
        """Return how many bytes of the segment this needs for ``size`` ranks."""
        return size * size * RING * ENVELOPE_BYTES

    def start(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor], name: int
    ) -> Callable[[], tuple[float, float]]:
        """Begin to move all messages, as far as that goes without waiting.

        ``name`` is a number of 32 bits that both ends must give. What this returns moves the rest,
        and returns when waiting began and ended: waiting ends when the first envelope of every
        message has gone through.
        """
        me = self._segment.rank
        moving: list[_Outgoing | _Incoming] = [
            *(_Outgoing(to, flat, name, *self._ring(me, to)) for to, flat in outgoing.items()),
            *(_Incoming(frm, flat, name, *self._ring(frm, me)) for frm, flat in incoming.items()),
        ]
        self._move(moving)
        return lambda: self._finish(moving)

    def _move(self, moving: list[_Outgoing | _Incoming]) -> None:
        """Move every message as far as it goes."""
        for message in moving:
            while not message.done and message.can_move():
                try:
                    message.move()
                except ValueError as mismatch:
                    self._fail(str(mismatch))

    def _finish(self, moving: list[_Outgoing | _Incoming]) -> tuple[float, float]:
        waited_from = waited_to = 0.0
        while True:
            self._move(moving)
            if waited_from and not waited_to and all(message.begun for message in moving):
                waited_to = perf_counter()
            moving = [message for message in moving if not message.done]
            if not moving:
                return waited_from, waited_to
            if not waited_from and not all(message.begun for message in moving):
                waited_from = perf_counter()
            self._wait(moving)

    def _wait(self, moving: list[_Outgoing | _Incoming]) -> None:
        """Wait until any of the messages can move."""

        def missing() -> list[int]:
            stuck = [message.peer for message in moving if not message.can_move()]
            return stuck if len(stuck) == len(moving) else []

        try:
            self._segment.wait(missing, self._timeout_s)
        except Late as late:
            self._fail(str(late))

    def _ring(self, source: int, to: int) -> tuple[memoryview, Tensor]:
        pair = source * self._segment.size + to
        start = self._words_start + pair * RING_WORDS
        return self._segment.words[start : start + RING_WORDS], self._memory[pair]
