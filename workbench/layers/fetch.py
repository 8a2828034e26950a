"""The input rows that a rank needs, fetched from the ranks that own them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.comm.comm import Comm
from workbench.layers.carrier import Seat
from workbench.plan import LayerPlan
from workbench.windows import Halo, Rows, Run

Finish = Callable[[], Mapping[int, Tensor]]
"""Waits for the messages of an exchange under way and returns those received, by rank."""


class Fetch:
    """The input rows that a rank needs, fetched from whoever owns them.

    Forward is one exchange with at most one message per pair of ranks; backward is its transpose:
    the gradients of fetched rows travel back to their owners, who add them up. A rank that neither
    sends nor receives calls nothing.

    Parameters
    ----------
    halo:
        Who needs what of whom; the rank is ``comm.rank``.
    dims:
        The dims of the array that are cut, in the order of the windows of ``halo``.
    name:
        What the calls are for: ``"{name}: halo"`` and ``"{name}: halo gradients"``.

    Attributes
    ----------
    rows:
        For each cut dim, what this rank needs along it.
    own:
        For each cut dim, the rows that this rank owns.
    wanted:
        For each cut dim, which of the rank's own rows it needs itself.
    """

    def __init__(self, halo: Halo, dims: tuple[int, ...], comm: Comm, name: str) -> None:
        self.dims, self.comm, self.name = dims, comm, name
        me = comm.rank
        self.rows: tuple[Rows, ...] = halo.needs(me)
        self.own: tuple[Run, ...] = halo.owned(me)
        self.wanted = halo.message(me, me)
        self.sent = {reader: halo.message(me, reader) for reader in halo.readers(me)}
        self.received = {owner: halo.message(owner, me) for owner in halo.owners(me)}
        self._places = {owner: self._place(runs) for owner, runs in self.received.items()}
        self._own_place = self._place(self.wanted)
        self._all_own = not self.received and all(
            rows.runs == runs for rows, runs in zip(self.rows, self.wanted, strict=True)
        )
        self._untouched = self._all_own and all(
            runs == (own,) or (not runs and own[0] == own[1])
            for runs, own in zip(self.wanted, self.own, strict=True)
        )

    @property
    def talks(self) -> bool:
        """Whether this rank sends or receives anything."""
        return bool(self.sent or self.received)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the needed rows of each cut dim, given the own ones; differentiable.

        The rows are those of ``rows[i].runs``, one after another. The result may share memory with
        ``x``, so it must not be changed in place.
        """
        if self.talks or not self._all_own:
            result: Tensor = _Fetch.apply(x, self)
            return result
        return x if self._untouched else self._take(x, self.wanted)

    # The pieces, for layers that compute while messages travel. None of them is differentiable.

    def start(self, x: Tensor) -> Finish:
        """Send what others need of ``x``; what is received has the shape of ``received``."""
        outgoing = {to: self._take(x, runs).contiguous() for to, runs in self.sent.items()}
        incoming = {
            owner: x.new_empty(self._shape(x.shape, map(_length, runs)))
            for owner, runs in self.received.items()
        }
        return self._exchange(outgoing, incoming, "halo")

    def assemble(self, x: Tensor, received: Mapping[int, Tensor]) -> Tensor:
        """Return the needed rows out of the own and the received ones, laid out as ``x`` is."""
        if self._all_own:
            return self._take(x, self.wanted)
        counts = (rows.count for rows in self.rows)
        needed = _empty_like(x, self._shape(x.shape, counts))
        self._box(needed, self._own_place).copy_(self._take(x, self.wanted))
        for owner, message in received.items():
            self._box(needed, self._places[owner]).copy_(message)
        return needed

    def pieces(self, gradient: Tensor) -> dict[int, Tensor]:
        """Return the gradients of fetched rows, by owner, out of those of the needed rows."""
        return {owner: self._box(gradient, place) for owner, place in self._places.items()}

    def start_back(
        self, gradients: Mapping[int, Tensor], like: Tensor, shape: torch.Size
    ) -> Finish:
        """Send gradients of fetched rows to their owners.

        ``shape`` is that of the own rows, ``like`` any array of their dtype.
        """
        outgoing = {owner: piece.contiguous() for owner, piece in gradients.items()}
        incoming = {
            reader: like.new_empty(self._shape(shape, map(_length, runs)))
            for reader, runs in self.sent.items()
        }
        return self._exchange(outgoing, incoming, "halo gradients")

    def own_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Return what the gradient of the needed rows says of the own ones: a new array."""
        mine = self._box(gradient, self._own_place)
        whole = all(
            runs == ((start, stop),)
            for runs, (start, stop) in zip(self.wanted, self.own, strict=True)
        )
        result = _empty_like(gradient, shape)
        if whole:
            return result.copy_(mine)
        result.zero_()
        self._add(result, self.wanted, mine)
        return result

    def add(self, gradient: Tensor, received: Mapping[int, Tensor]) -> None:
        """Add the gradients that readers have sent onto that of the own rows, in place."""
        for reader, message in received.items():
            self._add(gradient, self.sent[reader], message)

    # How rows are found.

    def _exchange(
        self, outgoing: dict[int, Tensor], incoming: dict[int, Tensor], what: str
    ) -> Finish:
        if not outgoing and not incoming:
            return lambda: incoming
        name = f"{self.name}: {what}"
        if not hasattr(self.comm, "start_exchange"):
            self.comm.exchange(outgoing, incoming, name=name)
            return lambda: incoming
        pending = self.comm.start_exchange(outgoing, incoming, name=name)
        return lambda: pending.finish()

    def _shape(self, shape: Sequence[int], counts: Any) -> tuple[int, ...]:
        """Return ``shape`` with ``counts`` in the cut dims."""
        found = list(shape)
        for dim, count in zip(self.dims, counts, strict=True):
            found[dim] = count
        return tuple(found)

    def _place(self, message: tuple[tuple[Run, ...], ...]) -> tuple[Run, ...]:
        """Return where a message, of what one rank owns, lies in the needed rows: one box."""
        return tuple(
            (_before(rows.runs, runs[0][0]), _before(rows.runs, runs[-1][1])) if runs else (0, 0)
            for rows, runs in zip(self.rows, message, strict=True)
        )

    def _box(self, array: Tensor, box: tuple[Run, ...]) -> Tensor:
        for dim, (start, stop) in zip(self.dims, box, strict=True):
            array = array.narrow(dim, start, stop - start)
        return array

    def _take(self, x: Tensor, message: tuple[tuple[Run, ...], ...]) -> Tensor:
        """Return rows of the own ones: a view where they lie together."""
        for dim, runs, (first, _) in zip(self.dims, message, self.own, strict=True):
            parts = [x.narrow(dim, start - first, stop - start) for start, stop in runs]
            x = parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else _none(x, dim)
        return x

    def _add(self, own: Tensor, message: tuple[tuple[Run, ...], ...], values: Tensor) -> None:
        """Add ``values``, taken as by :meth:`_take`, onto the own rows that they were taken of."""
        lengths = [[stop - start for start, stop in runs] for runs in message]
        offsets = [list(accumulate(each, initial=0)) for each in lengths]
        for numbers in product(*(range(len(runs)) for runs in message)):
            target, source = own, values
            for place, number in enumerate(numbers):
                dim, length = self.dims[place], lengths[place][number]
                start = message[place][number][0] - self.own[place][0]
                target = target.narrow(dim, start, length)
                source = source.narrow(dim, offsets[place][number], length)
            target.add_(source)


def fetch_for(seat: Seat, planned: LayerPlan) -> Fetch | None:
    """Return the fetch of the first argument of a planned call; None if no spatial dim is cut.

    It is worth keeping: make it once, when the layer is built.
    """
    halo = planned.halo(seat.plan.mesh)
    if halo is None:
        return None
    cuts = sorted((c for c in planned.input if c.axis == "spatial"), key=lambda c: c.part)
    return Fetch(halo, tuple(cut.dim for cut in cuts), seat.comm("spatial"), seat.name)


def extend(x: Tensor, dim: int, rows: Rows, value: float = 0.0) -> Tensor:
    """Return the padded rows ``[rows.start, rows.stop)`` along ``dim``; differentiable.

    ``x`` has the needed rows there. What lies outside the array is ``value``, or a copy of rows
    where the padding says so. Where there is nothing to add, the result is ``x`` itself.
    """
    if rows.order is not None:
        return x.index_select(dim, torch.tensor(rows.order, device=x.device))
    if not rows.before and not rows.after:
        return x
    dim = dim % x.dim()
    padding = [0] * (2 * (x.dim() - dim - 1)) + [rows.before, rows.after]
    return torch.nn.functional.pad(x, padding, value=value)


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fetch: Fetch) -> Tensor:
        ctx.fetch, ctx.shape = fetch, x.shape
        return fetch.assemble(x, fetch.start(x)())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fetch: Fetch = ctx.fetch
        finish = fetch.start_back(fetch.pieces(grads[0]), grads[0], ctx.shape)
        gradient = fetch.own_gradient(grads[0], ctx.shape)
        fetch.add(gradient, finish())
        return gradient, None


def _length(runs: tuple[Run, ...]) -> int:
    return sum(stop - start for start, stop in runs)


def _before(runs: tuple[Run, ...], row: int) -> int:
    """Return how many rows of ``runs`` come before ``row``."""
    return sum(max(0, min(stop, row) - start) for start, stop in runs)


def _none(x: Tensor, dim: int) -> Tensor:
    return x.narrow(dim, 0, 0)


def _empty_like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an array of another shape whose dims lie in memory in the order of those of ``x``."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
    return x.new_empty(shape)
