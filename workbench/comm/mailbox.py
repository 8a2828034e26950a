"""Messages from one rank to another on one host, through rings in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import NoReturn

import torch
from torch import Tensor

from workbench.comm.calls import in_words, message
from workbench.comm.segment import Late, Segment, fence

RING = 4
"""Envelopes per ring: a message of up to that many is sent without waiting."""

POST_RING = 32
"""Envelopes per ring of posted messages, which have to wait while their receiver computes."""

ENVELOPE_BYTES = 1 << 17

LABEL_WORDS = 3
"""Words that say which message begins in an envelope: see :func:`workbench.comm.calls.message`."""

PUT_WORD, TAKEN_WORD, LABELS_WORD = 0, 8, 16
"""Words of a ring: envelopes put in so far (a cache line that the sender writes), envelopes taken
out so far (one that the receiver writes), and the labels of all envelopes."""


class _Ring:
    """The envelopes from one rank to another, and their words."""

    def __init__(self, words: memoryview, memory: Tensor) -> None:
        self.words = words
        self.length = len(memory)
        self._memory = memory
        self._starts: dict[int, list[Tensor]] = {}

    def envelope(self, number: int, nbytes: int) -> Tensor:
        """Return the first bytes of an envelope."""
        starts = self._starts.get(nbytes)
        if starts is None:
            if len(self._starts) > 100:
                self._starts.clear()
            self._starts[nbytes] = starts = [each[:nbytes] for each in self._memory]
        return starts[number % self.length]


class _Message:
    """One message under way: what the two ends have in common."""

    def __init__(self, peer: int, flat: Tensor, name: str | None, ring: _Ring) -> None:
        self.peer = peer
        self.begun = self.done = False
        self._label = message(name, flat.dtype, flat.numel())
        self._ring = ring
        self._words = ring.words
        nbytes = flat.numel() * flat.element_size()
        in_bytes = flat.view(torch.uint8)
        self._pieces = [in_bytes] if nbytes <= ENVELOPE_BYTES else in_bytes.split(ENVELOPE_BYTES)
        self._at = 0

    def _next(self) -> Tensor:
        """Return the message's bytes for the next envelope, and count that envelope."""
        piece = self._pieces[self._at]
        self._at += 1
        self.begun = True
        self.done = self._at == len(self._pieces)
        return piece


class _Outgoing(_Message):
    def can_move(self) -> bool:
        return self._words[PUT_WORD] - self._words[TAKEN_WORD] < self._ring.length

    def move(self) -> None:
        """Put one envelope into the ring."""
        fence()
        words = self._words
        number = words[PUT_WORD]
        if not self.begun:
            label = LABELS_WORD + LABEL_WORDS * (number % self._ring.length)
            words[label], words[label + 1], words[label + 2] = self._label
        piece = self._next()
        self._ring.envelope(number, piece.numel()).copy_(piece)
        fence()
        words[PUT_WORD] = number + 1


class _Incoming(_Message):
    def can_move(self) -> bool:
        return self._words[PUT_WORD] > self._words[TAKEN_WORD]

    def move(self) -> None:
        """Take one envelope out of the ring; raise ValueError if it is not what was expected."""
        fence()
        words = self._words
        number = words[TAKEN_WORD]
        if not self.begun:
            label = LABELS_WORD + LABEL_WORDS * (number % self._ring.length)
            found = (words[label], words[label + 1], words[label + 2])
            if found != self._label:
                raise ValueError(
                    f"sent a {in_words(found)} where a {in_words(self._label)} was expected"
                )
        piece = self._next()
        piece.copy_(self._ring.envelope(number, piece.numel()))
        fence()
        words[TAKEN_WORD] = number + 1


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
        length: int = RING,
    ) -> None:
        self._length = length
        self._posted: list[_Outgoing] = []
        self._segment = segment
        self._words_start = words_start
        self._timeout_s = timeout_s
        self._fail = fail
        size = segment.size
        memory = segment.bytes[bytes_start:][: self.nbytes(size, length)]
        self._memory = memory.view(size * size, length, ENVELOPE_BYTES)
        self._rings: dict[int, _Ring] = {}

    @staticmethod
    def words(size: int, length: int = RING) -> int:
        """Return how many words of the segment this needs for ``size`` ranks."""
        return size * size * _ring_words(length)

    @staticmethod
    def nbytes(size: int, length: int = RING) -> int:
        """Return how many bytes of the segment this needs for ``size`` ranks."""
        return size * size * length * ENVELOPE_BYTES

    def start(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor], name: str | None
    ) -> Callable[[], tuple[float, float]]:
        """Begin to move all messages, as far as that goes without waiting.

        What this returns moves the rest, and returns when waiting began and ended: waiting ends
        when the first envelope of every message has gone through.
        """
        me = self._segment.rank
        moving: list[_Outgoing | _Incoming] = [
            *(_Outgoing(to, flat, name, self._ring(me, to)) for to, flat in outgoing.items()),
            *(_Incoming(frm, flat, name, self._ring(frm, me)) for frm, flat in incoming.items()),
        ]
        self._move(moving)
        return partial(self._finish, moving)

    def post(self, to: int, flat: Tensor, name: str | None) -> None:
        """Send as far as that goes without waiting; the rest goes while others are waited for."""
        self._posted.append(_Outgoing(to, flat, name, self._ring(self._segment.rank, to)))
        self._push()

    def settle(self) -> None:
        """Wait until all that was posted is in its ring."""
        while self._posted:
            self._push()
            if self._posted:
                self._wait([])

    def _push(self) -> None:
        """Move posted messages as far as they go, those to one rank in their order."""
        blocked: set[int] = set()
        for each in self._posted:
            while each.peer not in blocked and not each.done:
                if each.can_move():
                    each.move()
                else:
                    blocked.add(each.peer)
        self._posted = [each for each in self._posted if not each.done]

    def _move(self, moving: list[_Outgoing | _Incoming]) -> None:
        """Move every message as far as it goes."""
        for each in moving:
            while not each.done and each.can_move():
                try:
                    each.move()
                except ValueError as mismatch:
                    self._fail(f"rank {self._segment.ranks[each.peer]} {mismatch}")

    def _finish(self, moving: list[_Outgoing | _Incoming]) -> tuple[float, float]:
        waited_from = waited_to = 0.0
        while True:
            self._push()
            self._move(moving)
            moving = [each for each in moving if not each.done]
            all_begun = all(each.begun for each in moving)
            if waited_from and not waited_to and all_begun:
                waited_to = perf_counter()
            if not moving:
                return waited_from, waited_to
            if not waited_from and not all_begun:
                waited_from = perf_counter()
            self._wait(moving)

    def _wait(self, moving: list[_Outgoing | _Incoming]) -> None:
        """Wait until any of the messages can move."""

        def missing() -> list[int]:
            if any(each.can_move() for each in (*moving, *self._posted)):
                return []
            return sorted({each.peer for each in (moving or self._posted)})

        try:
            self._segment.wait(missing, self._timeout_s)
        except Late as late:
            self._fail(str(late))

    def _ring(self, source: int, to: int) -> _Ring:
        pair = source * self._segment.size + to
        ring = self._rings.get(pair)
        if ring is None:
            count = _ring_words(self._length)
            start = self._words_start + pair * count
            words = self._segment.words[start : start + count]
            self._rings[pair] = ring = _Ring(words, self._memory[pair])
        return ring


def _ring_words(length: int) -> int:
    """Return how many words a ring of ``length`` envelopes has, in whole cache lines."""
    return -(-(LABELS_WORD + LABEL_WORDS * length) // 8) * 8
