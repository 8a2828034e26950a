"""What every backend of collectives offers, and how bytes and time are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import NoReturn, Self

import torch
from torch import Tensor

from workbench.comm.account import Account, Booked
from workbench.comm.arguments import (
    ReduceOp,
    check_device,
    check_peer,
    check_reduction,
    flatten,
    put_back,
)
from workbench.comm.backend import Backend
from workbench.comm.exchange import Exchange
from workbench.comm.lending import Lending
from workbench.comm.partition import disagreement
from workbench.mesh import shares


class CommError(RuntimeError):
    """A collective did not finish: a peer is gone, too late, or asked for something else.

    After it the communicator is unusable. A rank process that sees it exits, because a peer that
    exits is the only sign that every other rank is sure to notice.
    """


class Comm(Lending, Booked, Backend):
    """Collectives between ``size`` ranks, of which this object is number ``rank``.

    Every rank calls the same method in the same order with tensors of the same dtype and size
    (except where said otherwise); a rank that does not is told so by :class:`CommError`. Tensors
    may have any layout, any dtype and any size, 0 included. ``name`` says what a call is for, in
    spans and in errors. One thread at a time may use a communicator. Every call is booked on
    ``account``, see :class:`workbench.comm.account.Account`.

    Attributes
    ----------
    ranks:
        What errors call the ranks of this communicator: their numbers in the communicator from
        which it was split, if it is a group; ``0`` to ``size - 1`` otherwise.
    account:
        What the calls have cost. A group has that of the communicator from which it was split.

    A backend implements the methods that begin with an underscore. Those get flat contiguous
    tensors on the right device, are never called with one rank, and leave in ``_wait_start`` and
    ``_wait_stop`` when they waited for peers to arrive.
    """

    backend: str
    device_type = "cpu"

    def __init__(
        self, rank: int, size: int, timeout_s: float, ranks: Sequence[int] | None = None
    ) -> None:
        if size < 1 or not 0 <= rank < size:
            raise ValueError(f"no rank {rank} among {size} ranks")
        if not timeout_s > 0:
            raise ValueError(f"the time limit must be more than 0 seconds; got {timeout_s}")
        self.rank = rank
        self.size = size
        self.timeout_s = timeout_s
        self.ranks = tuple(range(size) if ranks is None else ranks)
        self.account = Account()
        self._operation = "start"
        self._name: str | None = None
        self._unusable: str | None = None
        self._closed = False
        self._wait_start = self._wait_stop = 0.0
        self._under_way = False
        self._elements_sent: dict[int, int] = {}
        self._groups: list[Comm] = []

    # What a program calls.

    def all_reduce(
        self, tensor: Tensor, op: ReduceOp = "sum", *, name: str | None = None
    ) -> Tensor:
        """Replace ``tensor`` by the sum (max, min) over all ranks, in place, and return it.

        The result has the same bits on every rank. Booleans are added as "or".
        """
        check_device(tensor, self.device_type, self.backend)
        check_reduction(tensor, op)
        start = self._begin("all_reduce", name)
        if self.size > 1:
            flat = flatten(tensor)
            self._all_reduce(flat, op)
            put_back(tensor, flat)
            sent = self._all_reduce_elements(flat.numel()) * flat.element_size()
            self._end(start, sent)
        return tensor

    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = "sum", *, name: str | None = None
    ) -> Tensor:
        """Return this rank's balanced share of the flattened sum over ranks, as a new 1-d tensor.

        ``tensor`` keeps its values. Shares are those of :func:`workbench.mesh.balanced`.
        """
        check_device(tensor, self.device_type, self.backend)
        check_reduction(tensor, op)
        start = self._begin("reduce_scatter", name)
        flat = flatten(tensor)
        if self.size == 1:
            return flat.clone()
        share = self._reduce_scatter(flat, op)
        self._end(start, (flat.numel() - share.numel()) * flat.element_size())
        return share

    def all_gather(self, tensor: Tensor, *, name: str | None = None) -> list[Tensor]:
        """Return the tensors of all ranks, by rank, all new. Shapes may differ between ranks."""
        check_device(tensor, self.device_type, self.backend)
        start = self._begin("all_gather", name)
        flat = flatten(tensor)
        if self.size == 1:
            return [flat.clone().view(tensor.shape)]
        gathered = self._all_gather(flat, tuple(tensor.shape))
        self._end(start, (self.size - 1) * flat.numel() * flat.element_size())
        return gathered

    def broadcast(self, tensor: Tensor, root: int = 0, *, name: str | None = None) -> Tensor:
        """Replace ``tensor`` by that of rank ``root``, in place, and return it."""
        check_device(tensor, self.device_type, self.backend)
        if not 0 <= root < self.size:
            raise ValueError(f"broadcast from rank {root}: there are only ranks 0-{self.size - 1}")
        start = self._begin("broadcast", name)
        if self.size > 1:
            flat = flatten(tensor)
            self._broadcast(flat, root)
            if self.rank != root:
                put_back(tensor, flat)
            copies = self.size - 1 if self.rank == root else 0
            self._end(start, copies * flat.numel() * flat.element_size())
        return tensor

    def send(self, tensor: Tensor, to: int, *, name: str | None = None) -> None:
        """Send ``tensor`` to rank ``to``, which calls :meth:`recv` with the same ``name``.

        May return before it does.
        """
        check_device(tensor, self.device_type, self.backend)
        check_peer("send to", to, self.rank, self.size)
        start = self._begin("send", name)
        flat = flatten(tensor)
        self._exchange({to: flat}, {})()
        self._end(start, flat.numel() * flat.element_size())

    def recv(self, tensor: Tensor, source: int, *, name: str | None = None) -> Tensor:
        """Fill ``tensor`` (shape and dtype as sent) from rank ``source`` and return it."""
        check_device(tensor, self.device_type, self.backend)
        check_peer("receive from", source, self.rank, self.size)
        start = self._begin("recv", name)
        flat = flatten(tensor)
        self._exchange({}, {source: flat})()
        put_back(tensor, flat)
        self._end(start, 0)
        return tensor

    def post(self, tensor: Tensor, to: int, *, name: str | None = None) -> None:
        """Send ``tensor`` to rank ``to``, which calls :meth:`take`; waits for nobody.

        Until :meth:`settle` the caller must not write to ``tensor``. What does not fit between the
        two ranks travels while this rank waits in :meth:`take` or :meth:`settle`. Messages of one
        pair arrive in the order in which they were posted.
        """
        check_device(tensor, self.device_type, self.backend)
        check_peer("post to", to, self.rank, self.size)
        start = self._begin("post", name)
        flat = flatten(tensor)
        self._post_to(to, flat)
        self._end(start, flat.numel() * flat.element_size())

    def take(self, tensor: Tensor, source: int, *, name: str | None = None) -> Tensor:
        """Fill ``tensor`` with what rank ``source`` has posted under the same name; returns it."""
        check_device(tensor, self.device_type, self.backend)
        check_peer("take from", source, self.rank, self.size)
        start = self._begin("take", name)
        flat = flatten(tensor)
        self._take_from(source, flat)
        put_back(tensor, flat)
        self._end(start, 0)
        return tensor

    def settle(self) -> None:
        """Return when all that this rank has posted is on its way."""
        start = self._begin("settle", None)
        self._settle_posts()
        self._end(start, 0)

    def exchange(
        self,
        outgoing: Mapping[int, Tensor],
        incoming: Mapping[int, Tensor],
        *,
        name: str | None = None,
    ) -> Mapping[int, Tensor]:
        """Send one tensor to each rank in ``outgoing`` and fill those in ``incoming``, all at once.

        Only the ranks named take part, and a pair may be named on one side for sending only.
        Messages of one pair arrive in the order of the calls, and both sides give the same
        ``name``. Returns ``incoming``.
        """
        return self.start_exchange(outgoing, incoming, name=name).finish()

    def start_exchange(
        self,
        outgoing: Mapping[int, Tensor],
        incoming: Mapping[int, Tensor],
        *,
        name: str | None = None,
    ) -> Exchange:
        """Begin an :meth:`exchange`, to be ended by ``finish()`` of what this returns.

        Sends what can be sent without waiting, so that the caller computes while messages travel.
        Until ``finish()`` the caller must not touch any of the tensors, nor call another method of
        this or any other communicator (except ``close``), unless it ``overlaps``: then those of
        others are free. The time between the two is not counted.
        """
        for peer, tensor in (*outgoing.items(), *incoming.items()):
            check_device(tensor, self.device_type, self.backend)
            check_peer("exchange with", peer, self.rank, self.size)
        start = self._begin("exchange", name)
        if not outgoing and not incoming:
            return Exchange(incoming, None)
        sending = {peer: flatten(tensor) for peer, tensor in outgoing.items()}
        receiving = {peer: flatten(tensor) for peer, tensor in incoming.items()}
        end = self._exchange(sending, receiving)
        self._under_way = True
        self._book(start, 0)
        sent = sum(flat.numel() * flat.element_size() for flat in sending.values())
        return Exchange(incoming, partial(self._finish_exchange, end, incoming, receiving, sent))

    def _finish_exchange(
        self,
        end: Callable[[], None],
        incoming: Mapping[int, Tensor],
        receiving: Mapping[int, Tensor],
        sent: int,
    ) -> None:
        self._under_way = False
        self._check_usable("exchange")
        self._wait_start = self._wait_stop = start = perf_counter()
        end()
        for peer, tensor in incoming.items():
            put_back(tensor, receiving[peer])
        self._end(start, sent)

    def barrier(self, *, name: str | None = None) -> None:
        """Return when every rank has called it."""
        start = self._begin("barrier", name)
        if self.size > 1:
            self._barrier()
            self._end(start, 0)

    def allocate(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Return a zeroed 1-d tensor that this backend reduces fastest (collective call).

        On one host it lies in memory that all ranks map ("symmetric memory"), so that an
        all_reduce of it, or of the same slice of it on every rank, needs no copy.
        """
        if numel < 0:
            raise ValueError(f"cannot allocate {numel} elements: ask for 0 or more")
        start = self._begin("allocate", None)
        if self.size == 1:
            return Backend._allocate(self, numel, dtype)
        memory = self._allocate(numel, dtype)
        self._end(start, 0)
        return memory

    def split(self, members: Sequence[int], *, name: str | None = None) -> Comm:
        """Return a communicator among ``members`` only (collective call).

        Every rank names the group to which it belongs: ranks of this communicator, itself
        included, ascending. Each rank must be in one group, and all members must name the same one,
        else every rank gets :class:`CommError`. In the group the place among ``members`` is the
        rank. Its calls are booked on the account of this communicator, with which it is closed.
        """
        start = self._begin("split", name)
        own = torch.tensor(tuple(members), dtype=torch.int64, device=self.device_type)
        named = [own] if self.size == 1 else self._all_gather(own, tuple(own.shape))
        if wrong := disagreement([each.tolist() for each in named], self.ranks):
            self._fail(wrong)
        try:
            group = self._split(tuple(members))
        except CommError as error:
            self._unusable = self._unusable or str(error)
            raise
        group.account = self.account
        group.ranks = tuple(self.ranks[member] for member in members)
        self._groups = [other for other in self._groups if not other._closed] + [group]
        if self.size > 1:
            self._barrier()  # what a backend needs to form groups is no longer needed
            self._end(start, 0)
        return group

    def close(self) -> None:
        """Release what this and its groups hold. Needs no other rank; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._unusable = self._unusable or "it is closed"
            for group in self._groups:
                group.close()
            self._groups.clear()
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What backends use.

    def _fail(self, reason: str) -> NoReturn:
        """Mark the communicator as unusable and raise :class:`CommError` for the current call."""
        call = f"{self._operation} of {self._name!r}" if self._name else self._operation
        self._unusable = f"rank {self.ranks[self.rank]}, {call}: {reason}"
        raise CommError(self._unusable)

    # Accounting around each call.

    def _all_reduce_elements(self, numel: int) -> int:
        """Return how many elements this rank sends: parts to their owners, own sums to all."""
        elements = self._elements_sent.get(numel)
        if elements is None:
            parts = shares(numel, self.size)
            own = parts[self.rank]
            self._elements_sent[numel] = elements = sum(parts) - own + own * (self.size - 1)
        return elements

    def _check_usable(self, operation: str) -> None:
        if self._unusable is not None:
            raise CommError(f"{operation}: this communicator cannot be used: {self._unusable}")
        if self._under_way:
            raise RuntimeError(f"{operation}: first finish the exchange of {self._name!r}")

    def _begin(self, operation: str, name: str | None) -> float:
        """Note what is going on and since when."""
        if self._under_way or self._unusable is not None:
            self._check_usable(operation)
        self._operation = operation
        self._name = name
        self.account.calls[operation] += 1
        self._wait_start = self._wait_stop = start = perf_counter()
        return start

    def _end(self, start: float, sent: int) -> None:
        """Account for a call, or the rest of it, that began at ``start``."""
        self.account.sent_bytes[self._operation] += sent
        self._book(start, sent)

    def _book(self, start: float, sent: int) -> None:
        """Account for the time since ``start``."""
        name = self._name or self._operation
        stop = perf_counter()
        self.account.book(name, start, self._wait_start, self._wait_stop, stop, sent)
