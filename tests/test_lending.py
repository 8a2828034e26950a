"""Memory that ranks have in common: who sees what when, what is counted, who is told what."""

from __future__ import annotations

import pytest
import torch
from comm_threads import on_both

from workbench.comm.comm import Comm, CommError


@on_both
@pytest.mark.parametrize("size", [2, 3])
def test_what_a_rank_has_written_is_seen_when_it_is_lent(run, size):
    def work(comm: Comm) -> list[list[float]]:
        common = comm.common(2 * size, torch.float64)
        assert common is not None
        assert not common[comm.rank :: size].any()  # others may have written to their places
        seen = []
        for turn in range(50):
            # Two places in turn: one is read while the next is written.
            row = common.view(2, size)[turn % 2]
            row[comm.rank] = turn * 10 + comm.rank
            comm.lend(8, name=f"turn {turn}")
            seen.append(row.tolist())
        return seen

    for seen in run(size, work):
        assert seen == [[turn * 10 + rank for rank in range(size)] for turn in range(50)]


@on_both
def test_lending_counts_as_what_it_stands_for(run):
    def work(comm: Comm) -> dict[str, int]:
        comm.lend(40, name="parameters")
        comm.lend(40, name="again", wait=False)
        comm.lend(8, operation="reduce_scatter", name="gradients")
        return {name: n for name, n in comm.sent_bytes.items() if n}

    assert run(3, work) == [{"all_gather": 160, "reduce_scatter": 16}] * 3


@on_both
def test_ranks_that_lend_and_do_something_else_are_told(run):
    def work(comm: Comm) -> None:
        if comm.rank == 0:
            comm.lend(8, name="parameters")
        else:
            comm.all_reduce(torch.ones(3))

    with pytest.raises(CommError, match=r"lend .*8|all_reduce"):
        run(2, work)


def test_what_cannot_be_allocated_is_refused():
    from workbench.comm.connect import SoloComm

    with pytest.raises(ValueError, match="cannot allocate -1 elements"):
        SoloComm().common(-1, torch.float32)
