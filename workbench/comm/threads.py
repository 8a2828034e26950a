"""Ranks as threads of one process: for tests and for the proof that a plan equals serial."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from workbench.comm.arguments import ReduceOp
from workbench.comm.arithmetic import reduce_in_rank_order
from workbench.comm.comm import Comm, CommError
from workbench.mesh import balanced

Result = TypeVar("Result")

Letter = tuple[str | None, Tensor]
"""A message and its name."""


class Table:
    """What the ranks of one :class:`ThreadComm` share: places where each lays something down.

    A collective is a row of sittings. In each, every rank lays down one thing and waits for the
    others' things. Two places per rank, used in turn, are enough: a rank that lays down its thing
    for sitting ``n`` has finished with all things of sitting ``n - 1``.
    """

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        self.places: list[list[Any]] = [[None] * size, [None] * size]
        self.sittings = [0] * size
        self.letters: dict[tuple[int, int], deque[Letter]] = {
            (source, to): deque() for source in range(size) for to in range(size)
        }
        self.posts: dict[tuple[int, int], deque[Letter]] = {pair: deque() for pair in self.letters}
        self.groups: WeakValueDictionary[tuple[int, tuple[int, ...]], Table] = WeakValueDictionary()
        self.gone: dict[int, str] = {}
        self.over = False

    def group(self, sitting: int, members: tuple[int, ...]) -> Table:
        """Return the table of a group that was agreed on in this sitting; the first one makes it.

        It goes when no member has it any more.
        """
        with self.changed:
            group = self.groups.get((sitting, members))
            if group is None:
                self.groups[sitting, members] = group = Table(len(members))
                group.over = self.over
            return group

    def end(self) -> None:
        """End the time of everybody who waits, here or in a group, now or later."""
        with self.changed:
            self.over = True
            self.changed.notify_all()
            groups = list(self.groups.values())
        for group in groups:
            group.end()


class ThreadComm(Comm):
    """Collectives between threads of one process that share one :class:`Table`."""

    backend = "threads"
    overlaps = True

    def __init__(
        self,
        rank: int,
        table: Table,
        timeout_s: float,
        device_type: str = "cpu",
        ranks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rank, len(table.sittings), timeout_s, ranks)
        self.device_type = device_type
        self._table = table

    def _all_reduce(self, flat: Tensor, op: ReduceOp) -> None:
        part = self._reduce_scatter(flat, op)
        parts = self._sit(("all_reduce", "parts"), part)
        torch.cat(parts, out=flat)

    def _reduce_scatter(self, flat: Tensor, op: ReduceOp) -> Tensor:
        start, stop = balanced(flat.numel(), self.size, self.rank)
        all_flat = self._sit((self._operation, op, flat.dtype, flat.numel()), flat)
        part = torch.empty(stop - start, dtype=flat.dtype, device=flat.device)
        reduce_in_rank_order([other[start:stop] for other in all_flat], op, out=part)
        self._sit((self._operation, "read"), None)
        return part

    def _all_gather(self, flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        sent = self._sit((self._operation, flat.dtype), (flat, shape))
        gathered = [other.clone().view(other_shape) for other, other_shape in sent]
        self._sit((self._operation, "read"), None)
        return gathered

    def _broadcast(self, flat: Tensor, root: int) -> None:
        sent = self._sit(
            ("broadcast", f"from rank {self.ranks[root]}", flat.dtype, flat.numel()), flat
        )
        if self.rank != root:
            flat.copy_(sent[root])
        self._sit(("broadcast", "read"), None)

    def _barrier(self) -> None:
        self._sit(("barrier",), None)

    def _exchange(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]
    ) -> Callable[[], None]:
        table = self._table
        with table.changed:
            for peer, flat in outgoing.items():
                table.letters[self.rank, peer].append((self._name, flat.clone()))
            table.changed.notify_all()
        return partial(self._receive, incoming)

    def _receive(self, incoming: Mapping[int, Tensor]) -> None:
        """Wait for a letter of everybody in ``incoming`` and copy it out."""
        table = self._table
        with table.changed:
            self._wait(lambda: [peer for peer in incoming if not table.letters[peer, self.rank]])
            letters = {peer: table.letters[peer, self.rank].popleft() for peer in incoming}
        for peer, flat in incoming.items():
            self._put(peer, *letters[peer], flat)

    def _put(self, peer: int, name: str | None, letter: Tensor, flat: Tensor) -> None:
        if (name, letter.dtype, letter.numel()) != (self._name, flat.dtype, flat.numel()):
            self._fail(
                f"rank {self.ranks[peer]} sent {letter.numel()} of {letter.dtype} named "
                f"{name!r} where {flat.numel()} of {flat.dtype} named {self._name!r} were "
                f"expected"
            )
        flat.copy_(letter)

    def _post_to(self, to: int, flat: Tensor) -> None:
        table = self._table
        with table.changed:
            table.posts[self.rank, to].append((self._name, flat.clone()))
            table.changed.notify_all()

    def _take_from(self, source: int, flat: Tensor) -> None:
        table, pair = self._table, (source, self.rank)
        with table.changed:
            self._wait(lambda: [] if table.posts[pair] else [source])
            name, letter = table.posts[pair].popleft()
        self._put(source, name, letter, flat)

    def _common(self, numel: int, dtype: torch.dtype) -> Tensor:
        own = torch.zeros(numel, dtype=dtype, device=self.device_type)
        # Not by detach: what one rank writes is not to spoil what another has saved for backward.
        return self._sit(("common", dtype, numel), own)[0].data

    def _lend(self, nbytes: int) -> None:
        self._sit(("lend", nbytes), None)

    def _split(self, members: tuple[int, ...]) -> Comm:
        table = self._table.group(self._table.sittings[self.rank], members)
        ranks = [self.ranks[member] for member in members]
        rank = members.index(self.rank)
        return ThreadComm(rank, table, self.timeout_s, self.device_type, ranks)

    def _close(self) -> None:
        with self._table.changed:
            self._table.gone.setdefault(self.rank, "has closed its communicator")
            self._table.changed.notify_all()

    def _sit(self, call: tuple[object, ...], thing: Any) -> list[Any]:
        """Lay down ``thing`` for ``call`` and return what all ranks laid down, by rank."""
        table = self._table
        with table.changed:
            sitting = table.sittings[self.rank] + 1
            places = table.places[sitting % 2]
            places[self.rank] = (call, thing)
            table.sittings[self.rank] = sitting
            table.changed.notify_all()
            self._wait(lambda: [r for r, s in enumerate(table.sittings) if s < sitting])
            laid = list(places)
        for other, (other_call, _) in enumerate(laid):
            if other_call != call:
                self._fail(
                    f"rank {self.ranks[other]} asked for {_in_words(other_call)} where rank "
                    f"{self.ranks[self.rank]} asked for {_in_words(call)}"
                )
        return [thing for _, thing in laid]

    def _wait(self, missing: Callable[[], list[int]]) -> None:
        """Wait, with the table's lock held, until ``missing()`` names no rank."""
        if not missing():
            return
        start, deadline = perf_counter(), monotonic() + self.timeout_s
        while late := missing():
            gone = [rank for rank in late if rank in self._table.gone]
            if gone:
                self._fail(f"rank {self.ranks[gone[0]]} {self._table.gone[gone[0]]}")
            left = deadline - monotonic()
            if left <= 0 or self._table.over:
                ranks = ", ".join(str(self.ranks[rank]) for rank in late)
                self._fail(f"rank {ranks} did not come within {self.timeout_s:g} s")
            self._table.changed.wait(left)
        if self._wait_start == self._wait_stop:
            self._wait_start, self._wait_stop = start, perf_counter()


def _in_words(call: tuple[object, ...]) -> str:
    return " ".join(str(item) for item in call)


def run_threads(
    size: int, work: Callable[[Comm], Result], timeout_s: float = 60.0, device_type: str = "cpu"
) -> list[Result]:
    """Run ``work(comm)`` in ``size`` threads, one per rank, and return the results by rank.

    Raises the first error that is no consequence of another (a rank that fails makes the others
    see :class:`CommError`). All must have ended after ``timeout_s``, or :class:`CommError` names
    those that have not: only then are threads left, each until its next collective.
    """
    table = Table(size)
    results: dict[int, Result] = {}
    errors: list[Exception] = []

    def rank_main(rank: int) -> None:
        comm = ThreadComm(rank, table, timeout_s, device_type)
        try:
            results[rank] = work(comm)
        except Exception as error:
            errors.append(error)
        finally:
            comm.close()

    threads = [
        threading.Thread(target=rank_main, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(size)
    ]
    deadline = monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    if any(thread.is_alive() for thread in threads):
        table.end()
        for thread in threads:
            thread.join(max(0.0, deadline + 1.0 - monotonic()))
    causes = [error for error in errors if not isinstance(error, CommError)] or errors
    if causes:
        raise causes[0]
    late = [str(rank) for rank in range(size) if rank not in results]
    if late:
        raise CommError(f"rank {', '.join(late)} of {size} did not end within {timeout_s:g} s")
    return [results[rank] for rank in range(size)]
