"""Groups of ranks: right sums, one account, and errors that name ranks by their first numbers."""

from __future__ import annotations

import threading

import pytest
import torch
from comm_threads import check_collectives, on_both, run_shared
from shared_memory_left import open_memory

from workbench.comm.comm import Comm, CommError
from workbench.plan import Collective

ROWS_AND_COLUMNS = (((0, 1), (2, 3)), ((0, 2), (1, 3)))
PARTITIONS = {
    "one": ((0, 1, 2, 3),),
    "uneven": ((0, 2, 3), (1,)),
    "alone": ((0,), (1,), (2,), (3,)),
    "far apart": ((0, 3), (1, 2)),
}


def split(comm: Comm, groups: tuple[tuple[int, ...], ...]) -> Comm:
    return comm.split(next(group for group in groups if comm.rank in group))


@on_both
def test_rows_and_columns_of_a_mesh_reduce_as_the_whole(run):
    def work(comm: Comm) -> tuple[float, list[tuple[int, ...]]]:
        row, column = (split(comm, groups) for groups in ROWS_AND_COLUMNS)
        for each in (row, column, comm, row):
            check_collectives(each)
        value = torch.tensor(float(10**comm.rank))
        column.all_reduce(row.all_reduce(value, name="row"), name="column")
        return value.item(), [row.ranks, column.ranks]

    for rank, (value, ranks) in enumerate(run(4, work)):
        assert value == 1111
        assert ranks == [
            next(group for group in groups if rank in group) for groups in ROWS_AND_COLUMNS
        ]


@on_both
@pytest.mark.parametrize("groups", PARTITIONS.values(), ids=PARTITIONS)
def test_any_partition(run, groups):
    def work(comm: Comm) -> tuple[int, tuple[int, ...], float]:
        group = split(comm, groups)
        check_collectives(group)
        comm.barrier()
        assert group.size == len(group.ranks)
        assert group.ranks[group.rank] == comm.rank
        return group.size, group.ranks, group.all_reduce(torch.tensor(float(comm.rank))).item()

    for rank, (size, ranks, total) in enumerate(run(4, work)):
        (members,) = (group for group in groups if rank in group)
        assert (size, ranks, total) == (len(members), members, sum(members))


@on_both
def test_groups_of_groups_keep_the_first_numbers(run):
    def work(comm: Comm) -> tuple[int, ...]:
        outer = split(comm, ((0,), (1, 2, 3)))
        inner = outer.split([0]) if comm.rank < 2 else outer.split([1, 2])
        check_collectives(inner)
        assert inner.account is comm.account
        return inner.ranks

    assert run(4, work) == [(0,), (1,), (2, 3), (2, 3)]


@on_both
def test_calls_of_groups_are_booked_where_they_were_split(run):
    def work(comm: Comm) -> tuple[dict[str, int], dict[str, int], int]:
        spans: list[tuple[str, str, float, float, int]] = []
        comm.on_span = lambda *span: spans.append(span)
        row = split(comm, ROWS_AND_COLUMNS[0])
        comm.all_reduce(torch.zeros(10), name="all")
        row.all_reduce(torch.zeros(10), name="row")
        split(comm, ((0,), (1,), (2,), (3,))).all_reduce(torch.zeros(10), name="alone")
        assert sum(sent for *_, sent in spans) == sum(comm.sent_bytes.values())
        times = sum(stop - start for _, _, start, stop, _ in spans)
        assert times == pytest.approx(comm.comm_s + comm.wait_s)
        assert {name for _, name, *_ in spans} == {"split", "all", "row"}
        assert row.sent_bytes == comm.sent_bytes
        return dict(comm.sent_bytes), dict(comm.calls)

    planned = Collective("", "all_reduce", ("data",), 10, 4, "backward")
    for rank, (sent, calls) in enumerate(run(4, work)):
        expected = planned.sent_bytes(4, rank) + planned.sent_bytes(2, rank % 2)
        assert sent == {"all_reduce": expected, "split": 0}
        assert calls == {"all_reduce": 3, "split": 2}


DISAGREEMENTS = {
    "members": (lambda rank: [0, 1, 2] if rank == 1 else [[0, 1], [], [2]][rank], "rank 0 names"),
    "not a member": (lambda rank: [0, 1], "rank 2 names the group [0, 1], which it does not"),
    "order": (lambda rank: [2, 1, 0], "does not ascend"),
    "twice": (lambda rank: [0, 0, 1, 2], "does not ascend"),
    "nobody": (lambda rank: [rank] if rank else [], "rank 0 names the group [], which it does"),
    "unknown rank": (lambda rank: [rank, 7], "no such rank exists"),
}


@on_both
@pytest.mark.parametrize(("members", "words"), DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_groups_that_do_not_fit_are_refused_on_every_rank(run, members, words):
    said: dict[int, str] = {}

    def work(comm: Comm) -> None:
        with pytest.raises(CommError) as error:
            comm.split(members(comm.rank), name="the mesh")
        said[comm.rank] = str(error.value)
        with pytest.raises(CommError, match="cannot be used"):
            comm.barrier()

    run(3, work)
    assert sorted(said) == [0, 1, 2]
    for rank, sentence in said.items():
        assert sentence.startswith(f"rank {rank}, split of 'the mesh': ")
        assert words in sentence


@on_both
def test_a_split_where_others_gather_is_refused(run):
    def work(comm: Comm) -> None:
        with pytest.raises(CommError, match="asked for"):
            comm.split([0, 1]) if comm.rank else comm.all_gather(torch.tensor([0, 1]))

    run(2, work)


@on_both
def test_errors_in_a_group_name_ranks_by_their_first_numbers(run):
    def work(comm: Comm) -> str:
        row = split(comm, ROWS_AND_COLUMNS[0])
        if comm.rank < 2:
            return ""
        with pytest.raises(CommError) as error:
            row.all_reduce(torch.zeros(comm.rank), name="odd sizes")
        return str(error.value)

    said = run(4, work)
    assert said[2].startswith("rank 2, all_reduce of 'odd sizes': rank ")
    assert "rank 3" in said[2]
    assert "rank 2" in said[3]
    assert "rank 0" not in said[2] + said[3]


@on_both
def test_a_rank_that_leaves_ends_the_waiting_in_its_groups(run):
    said: list[str] = []

    def work(comm: Comm) -> None:
        row = split(comm, ROWS_AND_COLUMNS[0])
        if comm.rank == 3:
            raise KeyError("the cause")
        try:
            row.barrier()
        except CommError as error:
            said.append(str(error))
            raise

    with pytest.raises(KeyError, match="the cause"):
        run(4, work)
    assert said == ["rank 2, barrier: rank 3 has closed its communicator"]


@on_both
def test_a_member_that_never_comes_is_named(run):
    finished = threading.Event()

    def work(comm: Comm) -> None:
        group = split(comm, ((0,), (1, 2)))
        if comm.rank == 1:
            finished.wait(10)
        elif comm.rank == 2:
            try:
                group.barrier()
            finally:
                finished.set()

    with pytest.raises(CommError, match=r"rank 2, barrier: rank 1.* did not come within"):
        run(3, work, timeout_s=0.5)


@on_both
def test_closing_a_group_leaves_the_others(run):
    def work(comm: Comm) -> float:
        row, column = (split(comm, groups) for groups in ROWS_AND_COLUMNS)
        row.close()
        with pytest.raises(CommError, match="closed"):
            row.barrier()
        value = column.all_reduce(torch.ones(()))
        again = split(comm, ROWS_AND_COLUMNS[0])
        again.all_reduce(value)
        comm.close()
        for group in (column, again):
            with pytest.raises(CommError, match="closed"):
                group.barrier()
            group.close()
        return value.item()

    assert run(4, work) == [4, 4, 4, 4]


def test_groups_in_shared_memory_leave_no_file_descriptor():
    def work(comm: Comm) -> None:
        for _ in range(3):
            row, _ = (split(comm, groups) for groups in ROWS_AND_COLUMNS)
            row.allocate(5, torch.float32)
        row.close()

    def refused(comm: Comm) -> None:
        with pytest.raises(CommError):
            comm.split([0])

    before = open_memory()
    run_shared(4, work)
    run_shared(4, refused)
    assert open_memory() <= before
