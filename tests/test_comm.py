"""Collectives against plain arithmetic, on threads and on shared memory driven from threads."""

from __future__ import annotations

import threading

import pytest
import torch
from comm_threads import on_both
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.comm.arguments import REDUCIBLE
from workbench.comm.comm import Comm
from workbench.mesh import balanced
from workbench.plan import Collective

drawn = settings(max_examples=40, deadline=None)
sizes = st.integers(2, 4)
ops = st.sampled_from(["sum", "max", "min"])
movable = st.sampled_from([*REDUCIBLE, torch.uint16, torch.uint64, torch.float8_e4m3fn])
numels = st.one_of(st.integers(0, 9), st.integers(0, 3000), st.sampled_from([16384, 20001, 40000]))


def made(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what ``rank`` puts in: values that differ by place and by rank, some negative."""
    generator = torch.Generator().manual_seed(1000 * rank + numel)
    values = torch.randn(numel, generator=generator, dtype=torch.float64) * 50
    if dtype.is_complex:
        return torch.complex(values, values.flip(0)).to(dtype)
    if dtype == torch.bool:
        return values > 60
    return values.to(dtype) if dtype.is_signed else values.abs().to(dtype)


def plain(numel: int, dtype: torch.dtype, size: int, op: str = "sum") -> torch.Tensor:
    """Return the reduction as one would write it without communicators; halves in float32."""
    operator = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}[op]
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    total = made(0, numel, dtype).to(wide)
    for rank in range(1, size):
        total = operator(total, made(rank, numel, dtype).to(wide))
    return total.to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@on_both
@drawn
@given(size=sizes, numel=numels, dtype=st.sampled_from(REDUCIBLE), op=ops)
def test_reductions_are_the_plain_sum_over_ranks(run, size, numel, dtype, op):
    if dtype.is_complex:
        op = "sum"

    def work(comm: Comm) -> list[torch.Tensor]:
        mine = made(comm.rank, numel, dtype)
        share = comm.reduce_scatter(mine, op)
        assert same_bits(mine, made(comm.rank, numel, dtype))
        assert comm.all_reduce(mine, op) is mine
        return [mine, share]

    whole = plain(numel, dtype, size, op)
    for rank, (reduced, share) in enumerate(run(size, work)):
        assert same_bits(reduced, whole)
        assert same_bits(share, whole[slice(*balanced(numel, size, rank))])


@on_both
@drawn
@given(size=sizes, lengths=st.lists(numels, min_size=4, max_size=4), dtype=movable)
def test_all_gather_takes_different_shapes(run, size, lengths, dtype):
    def tensor_of(rank: int) -> torch.Tensor:
        flat = made(rank, lengths[rank], dtype)
        return flat.view(-1, 1) if rank % 2 else flat

    for gathered in run(size, lambda comm: comm.all_gather(tensor_of(comm.rank))):
        assert all(same_bits(got, tensor_of(rank)) for rank, got in enumerate(gathered))


@on_both
@drawn
@given(size=sizes, numel=numels, dtype=movable, data=st.data())
def test_broadcast_is_the_tensor_of_the_root(run, size, numel, dtype, data):
    root = data.draw(st.integers(0, size - 1))
    got = run(size, lambda comm: comm.broadcast(made(comm.rank, numel, dtype), root))
    assert all(same_bits(tensor, made(root, numel, dtype)) for tensor in got)


@on_both
@drawn
@given(size=sizes, dtype=movable, data=st.data())
def test_exchange_moves_whatever_pairs_agree_on(run, size, dtype, data):
    pairs = [(a, b) for a in range(size) for b in range(size) if a != b]
    big = st.sampled_from([150_000, 600_000])
    numel_of = data.draw(st.dictionaries(st.sampled_from(pairs), st.one_of(numels, big)))

    def work(comm: Comm) -> dict[int, torch.Tensor]:
        outgoing = {b: made(a, n, dtype) for (a, b), n in numel_of.items() if a == comm.rank}
        incoming = {
            a: torch.empty(n, dtype=dtype) for (a, b), n in numel_of.items() if b == comm.rank
        }
        return dict(comm.exchange(outgoing, incoming))

    for rank, received in enumerate(run(size, work)):
        assert set(received) == {a for a, b in numel_of if b == rank}
        for source, tensor in received.items():
            assert same_bits(tensor, made(source, numel_of[source, rank], dtype))


@on_both
@pytest.mark.parametrize("size", [2, 3, 4])
def test_tensors_larger_than_the_staging_memory(run, size):
    numel = 4_200_001 if size == 2 else 800_001
    dtype = torch.float32
    of_rank = [torch.arange(numel, dtype=dtype) / (rank + 3) for rank in range(size)]
    whole = of_rank[0]
    for tensor in of_rank[1:]:
        whole = whole + tensor

    def work(comm: Comm) -> list[torch.Tensor]:
        mine = of_rank[comm.rank].clone()
        gathered = comm.all_gather(mine[: numel // (comm.rank + 1)])
        root = comm.broadcast(mine.clone(), size - 1)
        allocated = comm.allocate(numel, dtype)
        allocated.copy_(mine)
        results = [comm.all_reduce(allocated), comm.reduce_scatter(mine), comm.all_reduce(mine)]
        return [*results, root, *gathered]

    for rank, (in_place, share, reduced, root, *gathered) in enumerate(run(size, work)):
        assert same_bits(reduced, whole)
        assert same_bits(in_place, whole)
        assert same_bits(share, whole[slice(*balanced(numel, size, rank))])
        assert same_bits(root, of_rank[-1])
        for source, tensor in enumerate(gathered):
            assert same_bits(tensor, of_rank[source][: numel // (source + 1)])


@on_both
@drawn
@given(
    size=sizes,
    numel=st.integers(1, 60_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.bool]),
    data=st.data(),
)
def test_allocated_memory_reduces_in_place_whole_and_in_slices(run, size, numel, dtype, data):
    start = data.draw(st.integers(0, numel - 1))

    def work(comm: Comm) -> list[torch.Tensor]:
        memory, other = comm.allocate(numel, dtype), comm.allocate(numel, dtype)
        assert not memory.any()
        for each in (memory, other):
            each.copy_(made(comm.rank, numel, dtype))
        comm.all_reduce(memory[start:])
        comm.all_reduce(other)
        return [memory, other]

    whole = plain(numel, dtype, size)
    for rank, (memory, other) in enumerate(run(size, work)):  # valid although all have closed
        assert same_bits(memory[:start], made(rank, numel, dtype)[:start])
        assert same_bits(memory[start:], whole[start:])
        assert same_bits(other, whole)


@on_both
def test_messages_of_a_pair_arrive_in_order(run):
    def work(comm: Comm) -> list[float]:
        if comm.rank == 0:
            for number in range(20):
                comm.send(torch.full((), float(number)), to=1)
            return []
        return [comm.recv(torch.empty(()), source=0).item() for _ in range(20)]

    assert run(2, work)[1] == list(range(20))


@on_both
def test_any_layout_is_filled_in_place(run):
    def work(comm: Comm) -> list[torch.Tensor]:
        transposed = torch.arange(6.0).view(2, 3).T * (comm.rank + 1)
        scalar = torch.tensor(comm.rank + 1)
        conjugate = torch.tensor([1 + 2j]).conj()
        parameter = torch.nn.Parameter(torch.ones(3))
        received = torch.zeros(4, 2)[:, 0]
        comm.exchange({1 - comm.rank: torch.arange(8)[::2].float()}, {1 - comm.rank: received})
        return [comm.all_reduce(t) for t in (transposed, scalar, conjugate, parameter)] + [received]

    for transposed, scalar, conjugate, parameter, received in run(2, work):
        assert transposed.tolist() == (torch.arange(6.0).view(2, 3).T * 3).tolist()
        assert scalar.item() == 3
        assert conjugate.tolist() == [2 - 4j]
        assert parameter.tolist() == [2, 2, 2]
        assert received.tolist() == [0, 2, 4, 6]


@on_both
@drawn
@given(size=sizes, numel=st.integers(0, 5000), dtype=st.sampled_from(REDUCIBLE))
def test_counted_bytes_are_those_of_the_plan(run, size, numel, dtype):
    def work(comm: Comm) -> dict[str, int]:
        comm.all_reduce(torch.zeros(numel, dtype=dtype))
        comm.reduce_scatter(torch.zeros(numel, dtype=dtype))
        comm.all_gather(torch.zeros(numel, dtype=dtype))
        comm.broadcast(torch.zeros(numel, dtype=dtype))
        next_rank, last_rank = (comm.rank + 1) % size, (comm.rank - 1) % size
        incoming = torch.zeros(7, dtype=dtype)
        comm.exchange({next_rank: torch.zeros(7, dtype=dtype)}, {last_rank: incoming})
        return dict(comm.sent_bytes)

    for rank, counted in enumerate(run(size, work)):
        for operation in ("all_reduce", "reduce_scatter", "all_gather", "broadcast"):
            planned = Collective("", operation, ("data",), numel, dtype.itemsize, "backward")
            assert counted[operation] == planned.sent_bytes(size, rank)
        assert counted["exchange"] == 7 * dtype.itemsize


@on_both
def test_spans_account_for_all_time_and_bytes(run):
    late = threading.Event()

    def work(comm: Comm) -> tuple[Comm, list[tuple[str, str, float, float, int]]]:
        spans: list[tuple[str, str, float, float, int]] = []
        before = comm.comm_s + comm.wait_s
        comm.on_span = lambda *span: spans.append(span)
        if comm.rank == 0:
            late.wait(0.05)
        comm.all_reduce(torch.zeros(50_000), name="bucket 0")
        comm.broadcast(torch.zeros(3))
        spent = comm.comm_s + comm.wait_s - before
        assert sum(stop - start for _, _, start, stop, _ in spans) == pytest.approx(spent)
        return comm, spans

    for rank, (comm, spans) in enumerate(run(2, work)):
        assert list(dict.fromkeys(name for _, name, *_ in spans)) == ["bucket 0", "broadcast"]
        assert sum(sent for *_, sent in spans) == sum(comm.sent_bytes.values())
        ends = [time for _, _, start, stop, _ in spans for time in (start, stop)]
        assert ends == sorted(ends)
        assert rank == 0 or ("wait", "bucket 0") in [(kind, name) for kind, name, *_ in spans]
        assert comm.calls["all_reduce"] == comm.calls["broadcast"] == 1
