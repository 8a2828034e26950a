"""Collectives between processes of one host, over memory that they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from workbench.comm.arguments import ReduceOp
from workbench.comm.arithmetic import reduce_in_rank_order
from workbench.comm.calls import Call, code
from workbench.comm.comm import Comm, CommError
from workbench.comm.connect import SoloComm
from workbench.comm.kernel import memfd_create
from workbench.comm.mailbox import POST_RING, Mailbox
from workbench.comm.segment import BLOCK_WORDS, PAGE, Late, Segment
from workbench.comm.staging import SLOT_BYTES, Staging
from workbench.comm.symmetric import Place, SymmetricMemory
from workbench.mesh import balanced

WHOLE_BYTES = 1 << 16
"""Up to here every rank adds everything itself: one sync less, and no result to hand out."""

IN_CACHE_BYTES, SMALL_PIECE_BYTES = 1 << 24, 1 << 18
"""Up to the first size a tensor may be in the cache, and is cut into pieces of the second size, of
which all that two ranks have under way is in the cache as well. Beyond, pieces are whole slots."""


class SharedMemoryComm(Comm):
    """Collectives over one memfd that all ranks have open.

    Parameters
    ----------
    fd:
        A memfd, empty before the first rank comes. The caller may close it afterwards.
    ranks, parent:
        For a group: what errors call its ranks, and the segment of the communicator it is from.

    Raises
    ------
    CommError
        From the constructor: a rank did not come within ``timeout_s``.
    """

    backend = "shared memory"

    def __init__(
        self,
        rank: int,
        size: int,
        fd: int,
        timeout_s: float,
        *,
        ranks: Sequence[int] | None = None,
        parent: Segment | None = None,
    ) -> None:
        super().__init__(rank, size, timeout_s, ranks)
        self._others = [other for other in range(size) if other != rank]
        shapes = size * BLOCK_WORDS
        rings = shapes + Staging.words(size)
        posts = rings + Mailbox.words(size)
        words = posts + Mailbox.words(size, POST_RING)
        slots = -(-8 * words // PAGE) * PAGE
        envelopes = slots + Staging.nbytes(size)
        post_envelopes = envelopes + Mailbox.nbytes(size)
        nbytes = post_envelopes + Mailbox.nbytes(size, POST_RING)
        self._segment = segment = Segment(rank, fd, words, nbytes, self.ranks, parent)
        self._staging = Staging(segment, shapes, slots, timeout_s, self._fail)
        self._mailbox = Mailbox(segment, rings, envelopes, timeout_s, self._fail)
        self._posts = Mailbox(segment, posts, post_envelopes, timeout_s, self._fail, POST_RING)
        self._symmetric = SymmetricMemory(segment)
        try:
            segment.sign_in()
            self._meet((code("start"), size, 0))
            if parent is None:
                segment.watch_peers()
                # Nobody goes on, and perhaps ends, before everybody watches everybody.
                self._meet((code("start"), size, 0))
        except Late as late:
            self._unusable = str(late)
            self.close()
            raise CommError(f"rank {self.ranks[rank]}, start: {late}") from None
        except CommError:
            self.close()
            raise

    def _all_reduce(self, flat: Tensor, op: ReduceOp) -> None:
        call = (code("all_reduce", op, flat.dtype), flat.numel(), 0)
        if flat.numel() * flat.element_size() <= WHOLE_BYTES:
            self._all_reduce_at_once(flat, op, call)
        elif (place := self._symmetric.find(flat)) is not None:
            self._all_reduce_in_place(place, op, call)
        elif self.size == 2:
            self._all_reduce_whole(flat, op, call)
        else:
            self._all_reduce_parts(flat, op, call)

    def _all_reduce_at_once(self, flat: Tensor, op: ReduceOp, call: Call) -> None:
        """Let every rank see everything in one sync."""
        staging = self._staging
        slots = staging.slots(staging.sync + 1, flat.dtype, flat.numel())
        slots[self.rank].copy_(flat)
        self._meet(call)
        reduce_in_rank_order(slots, op, out=flat)

    def _all_reduce_in_place(self, place: Place, op: ReduceOp, call: Call) -> None:
        """Add the own part over all ranks' memory and write the result back to all of it."""
        self._meet((*call[:2], place.number))
        for by_rank in place.own_part:
            result = by_rank[0]
            reduce_in_rank_order(by_rank, op, out=result)
            for other in by_rank[1:]:
                other.copy_(result)
        self._staging.settle(self._staging.announce())

    def _all_reduce_whole(self, flat: Tensor, op: ReduceOp, call: Call) -> None:
        """Let every rank see everything, piece by piece: for two ranks no more work than parts."""
        staging = self._staging
        in_cache = flat.numel() * flat.element_size() <= IN_CACHE_BYTES
        piece_bytes = SMALL_PIECE_BYTES if in_cache else SLOT_BYTES
        pieces = flat.split(piece_bytes // flat.element_size())

        def put(index: int, sync: int) -> None:
            piece = pieces[index]
            staging.slots(sync, flat.dtype, piece.numel())[self.rank].copy_(piece)

        for index, sync in self._rounds(call, len(pieces), put):
            piece = pieces[index]
            slots = staging.slots(sync, flat.dtype, piece.numel())
            reduce_in_rank_order(slots, op, out=piece)

    def _all_reduce_parts(self, flat: Tensor, op: ReduceOp, call: Call) -> None:
        """Let every owner add its part and hand the result out, piece by piece.

        The results of one round travel with the contributions to the next.
        """
        staging = self._staging
        parts = self._parts(flat)
        rounds = len(parts[self.rank])
        first = staging.sync + 1
        self._contribute(parts, 0, first)
        staging.announce(call)
        for index in range(rounds + 1):
            sync = first + index
            if index + 1 < rounds:
                self._contribute(parts, index + 1, sync + 1)
            self._settle(sync, call if index == 0 else None)
            if index < rounds:
                own = parts[self.rank][index]
                result = staging.regions(sync + 1, flat.dtype)[self.rank][self.rank][: own.numel()]
                self._add(own, sync, op, result)
                own.copy_(result)
                staging.announce()
            if index > 0:
                regions = staging.regions(sync, flat.dtype)
                for owner in self._others:
                    piece = parts[owner][index - 1]
                    piece.copy_(regions[owner][owner][: piece.numel()])

    def _reduce_scatter(self, flat: Tensor, op: ReduceOp) -> Tensor:
        call = (code("reduce_scatter", op, flat.dtype), flat.numel(), 0)
        parts = self._parts(flat)
        own = parts[self.rank]
        share = flat.new_empty(sum(piece.numel() for piece in own))
        results = share.split([piece.numel() for piece in own])

        def put(index: int, sync: int) -> None:
            self._contribute(parts, index, sync)

        for index, sync in self._rounds(call, len(own), put):
            self._add(own[index], sync, op, results[index])
        return share

    def _all_gather(self, flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        staging = self._staging
        call = (code(self._operation, "", flat.dtype), 0, 0)
        pieces = _pieces(flat)
        first = staging.put_shape(shape)

        def put(index: int, sync: int) -> None:
            if index < len(pieces):
                piece = pieces[index]
                staging.slots(sync, torch.uint8, piece.numel())[self.rank].copy_(piece)

        put(0, first)
        self._meet(call)
        gathered = [flat.new_empty(staging.shape(rank, first)) for rank in range(self.size)]
        gathered[self.rank].view(-1).copy_(flat)
        results = [_pieces(tensor.view(-1)) for tensor in gathered]
        rounds = max(len(theirs) for theirs in results)
        for index, sync in self._rounds(call, rounds, put, met=True):
            for rank in self._others:
                if index < len(results[rank]):
                    piece = results[rank][index]
                    piece.copy_(staging.slots(sync, torch.uint8, piece.numel())[rank])
        return gathered

    def _broadcast(self, flat: Tensor, root: int) -> None:
        staging = self._staging
        pieces = _pieces(flat)

        def put(index: int, sync: int) -> None:
            if self.rank == root:
                piece = pieces[index]
                staging.slots(sync, torch.uint8, piece.numel())[root].copy_(piece)

        call = (code("broadcast", "", flat.dtype), flat.numel(), self.ranks[root])
        for index, sync in self._rounds(call, len(pieces), put):
            if self.rank != root:
                piece = pieces[index]
                piece.copy_(staging.slots(sync, torch.uint8, piece.numel())[root])

    def _barrier(self) -> None:
        self._meet((code("barrier"), 0, 0))

    def _exchange(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]
    ) -> Callable[[], None]:
        finish = self._mailbox.start(outgoing, incoming, self._name)

        def end() -> None:
            self._wait_start, self._wait_stop = finish()

        return end

    def _post_to(self, to: int, flat: Tensor) -> None:
        self._posts.post(to, flat, self._name)

    def _take_from(self, source: int, flat: Tensor) -> None:
        self._wait_start, self._wait_stop = self._posts.start({}, {source: flat}, self._name)()

    def _settle_posts(self) -> None:
        self._posts.settle()

    def _split(self, members: tuple[int, ...]) -> Comm:
        """Let the first member make a memfd; the others open it by way of its process."""
        makes = members[0] == self.rank and len(members) > 1
        fd = memfd_create("workbench group") if makes else -1
        try:
            fds = self._all_gather(torch.tensor([fd]), (1,))
            if len(members) == 1:
                return SoloComm()
            if not makes:
                maker = f"/proc/{self._segment.pid(members[0])}"
                fd = os.open(f"{maker}/fd/{fds[members[0]].item()}", os.O_RDWR)
            ranks = [self.ranks[member] for member in members]
            rank = members.index(self.rank)
            # It returns when all members have mapped the memory, so nobody needs fd after that.
            return SharedMemoryComm(
                rank, len(members), fd, self.timeout_s, ranks=ranks, parent=self._segment
            )
        except OSError as error:
            self._fail(f"the memory of the group cannot be opened: {error}")
        finally:
            if fd >= 0:
                os.close(fd)

    def _allocate(self, numel: int, dtype: torch.dtype) -> Tensor:
        self._meet((code("allocate", "", dtype), numel, 0))
        return self._symmetric.allocate(numel, dtype)

    def _common(self, numel: int, dtype: torch.dtype) -> Tensor:
        self._meet((code("common", "", dtype), numel, 0))
        return self._symmetric.common(numel, dtype)

    def _lend(self, nbytes: int) -> None:
        self._meet((code("lend"), nbytes, 0))

    def _close(self) -> None:
        self._segment.close()
        # The tensors let go of the mapping when they go; those that were handed out stay valid.
        del self._segment, self._staging, self._mailbox, self._posts, self._symmetric

    # What the collectives are made of.

    def _meet(self, call: Call) -> None:
        """Announce the first sync of ``call`` and wait for everybody."""
        self._settle(self._staging.announce(call), call)

    def _settle(self, sync: int, call: Call | None) -> None:
        """Wait for everybody; the first sync of a call compares calls and counts as waiting."""
        if call is None:
            self._staging.settle(sync)
        else:
            self._wait_start, self._wait_stop = self._staging.arrive(sync, call)

    def _rounds(
        self, call: Call, rounds: int, put: Callable[[int, int], None], *, met: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Yield ``(index, sync)`` of each round when its data can be read.

        ``put(index, sync)`` writes this rank's data. It is called one round ahead, so that a peer
        that is a little late delays nobody. With ``met``, round 0 has been put and met already.
        """
        staging = self._staging
        first = staging.sync if met else staging.sync + 1
        if not met:
            put(0, first)
            staging.announce(call)
        for index in range(rounds):
            if index + 1 < rounds:
                put(index + 1, first + index + 1)
                staging.announce()
            if index or not met:
                self._settle(first + index, None if index else call)
            yield index, first + index

    def _parts(self, flat: Tensor) -> list[list[Tensor]]:
        """Cut ``flat`` by owner and every part into as many pieces, some empty, as region-sized."""
        region = self._staging.region_numel(flat.dtype)
        parts = [slice(*balanced(flat.numel(), self.size, rank)) for rank in range(self.size)]
        rounds = max(1, -(-(parts[0].stop - parts[0].start) // region))
        return [
            [flat[part][index * region : (index + 1) * region] for index in range(rounds)]
            for part in parts
        ]

    def _contribute(self, parts: list[list[Tensor]], index: int, sync: int) -> None:
        """Put one piece of every other rank's part where its owner finds it."""
        for owner in self._others:
            piece = parts[owner][index]
            regions = self._staging.regions(sync, piece.dtype)[self.rank]
            regions[owner][: piece.numel()].copy_(piece)

    def _add(self, own: Tensor, sync: int, op: ReduceOp, out: Tensor) -> None:
        """Reduce one piece of the own part over all ranks into ``out``."""
        regions = self._staging.regions(sync, own.dtype)
        by_rank = [regions[rank][self.rank][: own.numel()] for rank in range(self.size)]
        by_rank[self.rank] = own
        reduce_in_rank_order(by_rank, op, out=out)


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    """Cut ``flat`` into pieces of bytes that fit into a slot; without elements, one empty piece."""
    return flat.view(torch.uint8).split(SLOT_BYTES)
