"""The memory that the ranks of one host share: its layout, its flags, and waiting for peers.

The file is a memfd that every rank maps, so it has no name and is gone with the last process.

It begins with one block of words per rank, written by that rank alone: the number of the last
sync that it has announced, what it asked for at the last syncs, and which process it is. The shapes
and slots of :mod:`workbench.comm.staging` follow, and the rings of :mod:`workbench.comm.mailbox`.
"""

from __future__ import annotations

import mmap
import os
import platform
import select
from collections.abc import Callable, Sequence
from time import monotonic, sleep

import torch

from workbench.comm.kernel import pidfd_open

BLOCK_WORDS = 32
"""64-bit words of a rank's block. Word 0, the announced sync, has a cache line of its own."""

PID_WORD, CLOSED_WORD = 24, 25

LOOKS = 10
"""Looks at the flags, about half a microsecond each, before the processor is offered to others."""

YIELD_S, SHORT_NAPS_S = 0.001, 0.02
"""Until then in a wait the processor is offered to others, then left for short, then long naps."""

YIELDS_PER_NAP = 16
"""One nap in so many offers, however short the waits: see :meth:`Segment.wait`."""

PAGE = mmap.PAGESIZE


def _needs_fence() -> bool:
    return platform.machine() not in ("x86_64", "AMD64", "i686")


if _needs_fence():

    def fence() -> None:
        """Order all memory accesses before with all after, as other processors see them.

        x86 keeps stores in order and loads in order, which is all that a flag after its data
        needs. Elsewhere the kernel does it: ``schedule()`` contains a full barrier, on which
        membarrier(2) relies as well, and ``sched_yield`` always passes through it.
        """
        os.sched_yield()

else:

    def fence() -> None:
        """Do nothing: x86 keeps stores in order and loads in order."""


class Late(Exception):
    """A peer did not come; the text says which and why. The communicator adds in which call."""


class Segment:
    """One rank's mapping of the shared file.

    Attributes
    ----------
    words:
        The part with flags and counters as unsigned 64-bit words. A word has one writer.
    bytes:
        The whole first mapping as a uint8 tensor.

    Parameters
    ----------
    ranks:
        What sentences call the ranks; for a group their numbers in the first communicator.
    parent:
        For a group, the segment of the communicator it was split from, which watches the peers.
    """

    def __init__(
        self,
        rank: int,
        fd: int,
        words: int,
        nbytes: int,
        ranks: Sequence[int],
        parent: Segment | None = None,
    ) -> None:
        self.rank = rank
        self.size = len(ranks)
        self.ranks = ranks
        self._parent = parent
        self._fd = os.dup(fd)
        self.end = 0
        mapped = self.grow(nbytes)
        self.bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self.words = memoryview(mapped)[: 8 * words].cast("Q")
        self._signed_in = False
        self._offers = 0
        self._alive = select.poll()
        self._peer_of_pidfd: dict[int, int] = {}

    def grow(self, nbytes: int, *, populate: bool = False) -> mmap.mmap:
        """Map the next ``nbytes`` of the file; every rank does the same.

        The file only ever grows: a rank must not come here again before all ranks have.
        """
        start, self.end = self.end, -(-(self.end + nbytes) // PAGE) * PAGE
        if os.fstat(self._fd).st_size < self.end:
            os.ftruncate(self._fd, self.end)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        return mmap.mmap(self._fd, self.end - start, flags=flags, offset=start)

    def sign_in(self) -> None:
        """Write down which process this rank is; raise :class:`Late` if the place is taken."""
        word = self.rank * BLOCK_WORDS + PID_WORD
        if self.words[word]:
            raise Late("this memory has been used by other ranks; every start needs a new one")
        self.words[word] = os.getpid()
        self._signed_in = True

    def watch_peers(self) -> None:
        """Open a handle on each peer's process, once all have signed in.

        A handle tells that a process has ended even while nobody has collected its exit status,
        and cannot be fooled by a process number that is used again.
        """
        for peer in range(self.size):
            pid = self.pid(peer)
            if pid == os.getpid():
                continue
            try:
                pidfd = pidfd_open(pid)
            except ProcessLookupError:
                raise Late(f"rank {self.ranks[peer]} (pid {pid}) is gone") from None
            except OSError:
                continue  # no pidfd here (old kernel, sandbox): the time limit remains
            self._alive.register(pidfd, select.POLLIN)
            self._peer_of_pidfd[pidfd] = peer

    def pid(self, rank: int) -> int:
        """Return the process id of ``rank``, 0 before it has signed in."""
        return self.words[rank * BLOCK_WORDS + PID_WORD]

    def gone(self) -> dict[int, str]:
        """Return who will do nothing more, by their numbers in ``ranks``, each with a sentence."""
        found = {} if self._parent is None else self._parent.gone()
        for pidfd, _ in self._alive.poll(0):
            peer = self._peer_of_pidfd[pidfd]
            number = self.ranks[peer]
            found[number] = f"rank {number} (pid {self.pid(peer)}) is gone"
        for peer, number in enumerate(self.ranks):
            if self.words[peer * BLOCK_WORDS + CLOSED_WORD]:
                found.setdefault(number, f"rank {number} has closed its communicator")
        return found

    def wait(self, missing: Callable[[], list[int]], timeout_s: float) -> None:
        """Return when ``missing()`` names no peer; raise :class:`Late` if it does for too long.

        The processor is first kept for a moment, then offered to others between looks, then left in
        naps, because there may be more ranks than cores. Some early naps let the kernel part two
        ranks that wait for each other on one core: it moves those that wake up, and never looks
        at those that yield. (Do not shorten naps by PR_SET_TIMERSLACK: Linux 6.12 and later let a
        task that sleeps for a few microseconds keep its core, and others wait for the next tick.)
        """
        for _ in range(LOOKS):
            if not missing():
                return
        start = monotonic()
        look_again = start + SHORT_NAPS_S
        while late := missing():
            now = monotonic()
            if now > look_again:
                look_again = now + 0.05
                gone = self.gone()
                # Read again: a peer may have done its part and then gone.
                still_late = [self.ranks[peer] for peer in missing()] if gone else []
                if reasons := [gone[number] for number in still_late if number in gone]:
                    raise Late(reasons[0])
            if now > start + timeout_s:
                raise Late(self._not_come(late, timeout_s))
            self._offers += 1
            if now < start + YIELD_S and self._offers % YIELDS_PER_NAP:
                # The poll lets the other threads of this process run; sched_yield alone does not.
                self._alive.poll(0)
                os.sched_yield()
            else:
                sleep(0.000001 if now < start + SHORT_NAPS_S else 0.0005)

    def _not_come(self, late: list[int], timeout_s: float) -> str:
        who = [
            f"rank {self.ranks[peer]}" + (f" (pid {pid})" if (pid := self.pid(peer)) else "")
            for peer in late
        ]
        return f"{', '.join(who)} did not come within {timeout_s:g} s"

    def close(self) -> None:
        """Tell the peers and release everything; tensors that are still held stay valid."""
        if self._signed_in:
            self.words[self.rank * BLOCK_WORDS + CLOSED_WORD] = 1
        self.words.release()
        self.bytes = torch.empty(0, dtype=torch.uint8)
        for pidfd in self._peer_of_pidfd:
            os.close(pidfd)
        self._peer_of_pidfd.clear()
        os.close(self._fd)
