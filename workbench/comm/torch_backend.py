"""Collectives over torch.distributed: gloo between hosts, NCCL between GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from time import monotonic, perf_counter, sleep
from typing import Any, Literal
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.comm.arguments import ReduceOp
from workbench.comm.arithmetic import reduce_in_rank_order
from workbench.comm.calls import Call, code, in_words, message
from workbench.comm.comm import Comm, CommError
from workbench.comm.connect import SoloComm
from workbench.comm.nccl_posts import NcclPosts
from workbench.comm.rendezvous import file_store, tcp_store
from workbench.mesh import balanced

__all__ = ["TorchComm", "file_store", "tcp_store"]

WHOLE_BYTES = 1 << 16
"""Up to here every rank sends everything to all and adds it itself: one exchange less."""

LABEL_NUMBERS = 4 + 64
"""What goes before every message: the call, the number of dims and the shape (at most 64 dims)."""

LABEL_TAG, DATA_TAG, POST_LABEL_TAG, FIRST_MESSAGE_TAG = 1, 2, 3, 4

NCCL_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int32, torch.int64,
)  # fmt: skip
NCCL_OPERATORS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class TorchComm(Comm):
    """Collectives made of torch's point-to-point messages.

    Every collective is an exchange of messages between all pairs, as many bytes as the ring moves.
    Each message has a label in front, so a rank that asks for something else is found out before
    its data are touched (gloo's own collectives end the process when sizes differ). Sums are
    added here in rank order: the bits are those of the other backends.

    With NCCL one rank has one GPU, reductions of common dtypes use NCCL's own all_reduce, and every
    call returns when the GPU has finished it. Waiting for peers cannot be told from moving data
    there: ``comm_s`` includes it, and what was still being computed on the GPU before the call.

    Parameters
    ----------
    store:
        Where the ranks find each other: :func:`file_store` on one host, else :func:`tcp_store`.
    device:
        Where the tensors are: "cpu" for gloo, "cuda" or "cuda:1" for NCCL.
    address:
        For gloo, the address of this host on which the other ranks reach it.
    ranks:
        For a group: what errors call its ranks.

    Raises
    ------
    CommError
        From the constructor: the ranks did not find each other within ``timeout_s``.
    """

    def __init__(
        self,
        backend: Literal["gloo", "nccl"],
        rank: int,
        size: int,
        store: dist.Store,
        timeout_s: float,
        *,
        device: str = "cpu",
        address: str = "127.0.0.1",
        ranks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rank, size, timeout_s, ranks)
        self.backend: Literal["gloo", "nccl"] = backend
        self._store, self._address, self._splits = store, address, 0
        self.overlaps = backend == "gloo"  # a GPU that waits for a message computes nothing
        self._posted: list[tuple[int, dist.Work]] = []
        self.device = torch.device(device)
        self.device_type = self.device.type
        if (backend == "nccl") != (self.device_type == "cuda"):
            raise ValueError(f"{backend} does not move tensors on {device}: use cpu with gloo")
        self._others = [other for other in range(size) if other != rank]
        self._timeout = timedelta(seconds=timeout_s)
        self._nccl_posts: NcclPosts | None = None
        self._group: Any = None  # ProcessGroup and its gloo backend have no common type in torch
        try:
            make = self._make_nccl if backend == "nccl" else self._make_gloo
            self._group = make(dist.PrefixStore(f"workbench-{backend}", store), address)
            self._meet((code("start"), size, 0))
            if backend == "nccl":
                self._nccl_posts = NcclPosts(rank, self._make_named, self._finish)
        except RuntimeError as error:
            self.close()
            if isinstance(error, CommError):
                raise
            raise CommError(
                f"rank {self.ranks[rank]}, start: the {size} ranks did not find each other within "
                f"{timeout_s:g} s: {_reason(error)}"
            ) from error

    def _make_gloo(self, store: dist.Store, address: str) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = self._timeout
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        return dist.ProcessGroupGloo(store, self.rank, self.size, options)

    def _make_nccl(self, store: dist.Store, _address: str) -> Any:
        if self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(self.device)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        group = dist.ProcessGroup(store, self.rank, self.size)
        group._set_default_backend(dist.ProcessGroup.BackendType.NCCL)
        nccl = dist.ProcessGroupNCCL(store, self.rank, self.size, options)
        nccl._set_sequence_number_for_group()
        group._register_backend(self.device, dist.ProcessGroup.BackendType.NCCL, nccl)
        return group

    def _make_named(self, name: str) -> Any:
        return self._make_nccl(dist.PrefixStore(f"workbench {name}", self._store), "")

    def _all_reduce(self, flat: Tensor, op: ReduceOp) -> None:
        call = (code("all_reduce", op, flat.dtype), flat.numel(), 0)
        self._meet(call)
        if self.backend == "nccl" and flat.dtype in NCCL_DTYPES:
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp(NCCL_OPERATORS[op])
            self._finish(self._group.allreduce([flat], options), "an all_reduce")
        elif flat.numel() * flat.element_size() <= WHOLE_BYTES:
            flat.copy_(self._sum_of(op, flat, dict.fromkeys(self._others, flat)))
        else:
            parts = _parts(flat, self.size)
            theirs = {other: parts[other] for other in self._others}
            own = parts[self.rank]
            own.copy_(self._sum_of(op, own, theirs))
            self._move(dict.fromkeys(self._others, own), theirs)

    def _reduce_scatter(self, flat: Tensor, op: ReduceOp) -> Tensor:
        self._meet((code("reduce_scatter", op, flat.dtype), flat.numel(), 0))
        parts = _parts(flat, self.size)
        return self._sum_of(op, parts[self.rank], {other: parts[other] for other in self._others})

    def _all_gather(self, flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        shapes = self._meet((code(self._operation, "", flat.dtype), 0, 0), shape)
        gathered = [flat.new_empty(shapes.get(rank, shape)) for rank in range(self.size)]
        gathered[self.rank].view(-1).copy_(flat)
        incoming = {other: gathered[other].view(-1) for other in self._others}
        self._move(dict.fromkeys(self._others, flat), incoming)
        return gathered

    def _broadcast(self, flat: Tensor, root: int) -> None:
        self._meet((code("broadcast", "", flat.dtype), flat.numel(), self.ranks[root]))
        if self.rank == root:
            self._move(dict.fromkeys(self._others, flat), {})
        else:
            self._move({}, {root: flat})

    def _barrier(self) -> None:
        self._meet((code("barrier"), 0, 0))

    def _exchange(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]
    ) -> Callable[[], None]:
        sent = {peer: message(self._name, t.dtype, t.numel()) for peer, t in outgoing.items()}
        expected = {peer: message(self._name, t.dtype, t.numel()) for peer, t in incoming.items()}
        if self.backend == "nccl":
            # A GPU that waits for a message computes nothing, so there all begins at the end.
            def end() -> None:
                self._swap_labels(sent, expected)
                self._move(outgoing, incoming)

            return end

        labels = {peer: torch.tensor(_label(call, ())) for peer, call in sent.items()}
        heard = {peer: torch.empty(LABEL_NUMBERS, dtype=torch.int64) for peer in expected}
        of_labels = self._post(labels, heard, lambda _: LABEL_TAG)
        # Under a tag of their own, data can only reach who expects the same message.
        to = self._post(_bytes(outgoing), {}, lambda peer: _tag(sent[peer]))
        of_data = to + self._post({}, _bytes(incoming), lambda peer: _tag(expected[peer]))

        def wait_for_all() -> None:
            start = perf_counter()
            self._wait_for(of_labels)
            self._wait_start, self._wait_stop = start, perf_counter()
            self._check_labels(heard, expected)
            self._wait_for(of_data)

        return wait_for_all

    def _post_to(self, to: int, flat: Tensor) -> None:
        call = message(self._name, flat.dtype, flat.numel())
        if self._nccl_posts is not None:
            self._nccl_posts.post(to, call, flat)
            return
        self._posted = [each for each in self._posted if not each[1].is_completed()]
        said = {to: torch.tensor(_label(call, ()))}
        self._posted += self._post(said, {}, lambda _: POST_LABEL_TAG)
        self._posted += self._post(_bytes({to: flat}), {}, lambda _: _tag(call))

    def _take_from(self, source: int, flat: Tensor) -> None:
        call = message(self._name, flat.dtype, flat.numel())
        if self._nccl_posts is not None:
            found, wait = self._nccl_posts.take(source, flat)
            self._check_call(source, found, call)
            wait()
            return
        start = perf_counter()
        heard = {source: torch.empty(LABEL_NUMBERS, dtype=torch.int64)}
        of_label = self._post({}, heard, lambda _: POST_LABEL_TAG)
        of_data = self._post({}, _bytes({source: flat}), lambda _: _tag(call))
        self._wait_for(of_label)
        self._wait_start, self._wait_stop = start, perf_counter()
        self._check_labels(heard, {source: call})
        self._wait_for(of_data)

    def _settle_posts(self) -> None:
        posted, self._posted = self._posted, []
        self._wait_for(posted)
        if self._nccl_posts is not None:
            self._nccl_posts.settle()

    def _split(self, members: tuple[int, ...]) -> Comm:
        self._splits += 1
        if len(members) == 1:
            return SoloComm(self.device_type)
        name = f"group {self._splits} of rank {members[0]}"
        return TorchComm(
            self.backend,
            members.index(self.rank),
            len(members),
            dist.PrefixStore(name, self._store),
            self.timeout_s,
            device=str(self.device),
            address=self._address,
            ranks=[self.ranks[member] for member in members],
        )

    def _close(self) -> None:
        group, self._group = self._group, None
        if self._nccl_posts is not None:
            self._nccl_posts.close()
        del self._store
        if group is not None and self.backend == "nccl":
            group.abort()  # waits for nobody, unlike shutdown

    # What the collectives are made of.

    def _sum_of(self, op: ReduceOp, own: Tensor, outgoing: Mapping[int, Tensor]) -> Tensor:
        """Send ``outgoing``, receive what the others have for ``own``, and return the reduction."""
        by_rank = [torch.empty_like(own) for _ in range(self.size)]
        self._move(outgoing, {other: by_rank[other] for other in self._others})
        by_rank[self.rank] = own
        total = torch.empty_like(own)
        reduce_in_rank_order(by_rank, op, out=total)
        return total

    def _meet(self, call: Call, shape: tuple[int, ...] = ()) -> dict[int, tuple[int, ...]]:
        """Compare ``call`` with all other ranks and return their shapes."""
        calls = dict.fromkeys(self._others, call)
        return self._swap_labels(calls, calls, shape)

    def _swap_labels(
        self,
        outgoing: Mapping[int, Call],
        expected: Mapping[int, Call],
        shape: tuple[int, ...] = (),
    ) -> dict[int, tuple[int, ...]]:
        """Tell peers what comes, hear what comes from them and check it; return their shapes."""
        start = perf_counter()
        labels = {
            peer: torch.tensor(_label(call, shape), device=self.device)
            for peer, call in outgoing.items()
        }
        heard = {
            peer: torch.empty(LABEL_NUMBERS, dtype=torch.int64, device=self.device)
            for peer in expected
        }
        self._transfer(labels, heard, LABEL_TAG)
        if self.backend == "gloo":
            self._wait_start, self._wait_stop = start, perf_counter()
        return self._check_labels(heard, expected)

    def _check_labels(
        self, heard: Mapping[int, Tensor], expected: Mapping[int, Call]
    ) -> dict[int, tuple[int, ...]]:
        """Compare what peers say with what was expected of them; return their shapes."""
        shapes: dict[int, tuple[int, ...]] = {}
        for peer, label in heard.items():
            code_, numel, place, dims, *sizes = label.tolist()
            self._check_call(peer, (code_, numel, place), expected[peer])
            shapes[peer] = tuple(sizes[:dims])
        return shapes

    def _check_call(self, peer: int, found: Call, expected: Call) -> None:
        if found != expected:
            self._fail(
                f"rank {self.ranks[self.rank]} asked for {in_words(expected)}, "
                f"rank {self.ranks[peer]} for {in_words(found)}"
            )

    def _move(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Move messages that both sides have agreed on; empty ones need nothing."""
        self._transfer(_bytes(outgoing), _bytes(incoming), DATA_TAG)

    def _transfer(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor], tag: int
    ) -> None:
        """Start everything, then wait for everything."""
        if self.backend == "nccl":
            if outgoing or incoming:
                self._transfer_grouped(outgoing, incoming)
        else:
            self._wait_for(self._post(outgoing, incoming, lambda _: tag))

    def _post(
        self,
        outgoing: Mapping[int, Tensor],
        incoming: Mapping[int, Tensor],
        tag: Callable[[int], int],
    ) -> list[tuple[int, dist.Work]]:
        """Start messages of gloo and return what is under way, with its peer."""
        works = []
        for peer, tensor, begin in (
            *((peer, tensor, self._group.recv) for peer, tensor in incoming.items()),
            *((peer, tensor, self._group.send) for peer, tensor in outgoing.items()),
        ):
            try:
                works.append((peer, begin([tensor], peer, tag(peer))))
            except RuntimeError as error:
                self._fail(f"rank {self.ranks[peer]} is gone: {_reason(error)}")
        return works

    def _wait_for(self, works: list[tuple[int, dist.Work]]) -> None:
        for peer, work in works:
            try:
                work.wait()
            except RuntimeError as error:
                self._fail(f"rank {self.ranks[peer]} is gone or late: {_reason(error)}")

    def _transfer_grouped(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]
    ) -> None:
        """Give NCCL all messages at once; one by one in different orders they would block."""
        self._group._start_coalescing(self.device)
        for peer, tensor in outgoing.items():
            self._group.send([tensor], peer, 0)
        for peer, tensor in incoming.items():
            self._group.recv([tensor], peer, 0)
        peers = ", ".join(str(self.ranks[peer]) for peer in sorted({*outgoing, *incoming}))
        self._finish(self._group._end_coalescing(self.device), f"messages with rank {peers}")

    def _finish(self, work: dist.Work, what: str) -> None:
        """Wait until the GPU has done ``work``; NCCL by itself would only let its stream wait."""
        deadline = monotonic() + self.timeout_s
        while not work.is_completed():
            if monotonic() > deadline:
                self._fail(f"{what} did not end within {self.timeout_s:g} s")
            sleep(0)
        try:
            work.wait()
        except RuntimeError as error:
            self._fail(f"{what} failed: {_reason(error)}")


def _parts(flat: Tensor, size: int) -> list[Tensor]:
    """Return the balanced parts of ``flat`` by owner, as views."""
    return [flat[slice(*balanced(flat.numel(), size, owner))] for owner in range(size)]


def _bytes(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the tensors that have elements, as bytes."""
    return {peer: flat.view(torch.uint8) for peer, flat in tensors.items() if flat.numel()}


def _tag(call: Call) -> int:
    """Return a tag for the data of this message."""
    return FIRST_MESSAGE_TAG + crc32(repr(call).encode()) % (1 << 30)


def _label(call: Call, shape: tuple[int, ...]) -> list[int]:
    numbers = [*call, len(shape), *shape]
    return numbers + [0] * (LABEL_NUMBERS - len(numbers))


def _reason(error: BaseException) -> str:
    """Return torch's first sentence, without the place in its source."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
