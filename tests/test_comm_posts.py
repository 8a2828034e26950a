"""Posted messages: sent without waiting, taken in their order, counted once."""

from __future__ import annotations

import pytest
import torch
from comm_threads import on_both

from workbench.comm.comm import Comm, CommError
from workbench.comm.mailbox import ENVELOPE_BYTES, POST_RING

BEYOND_THE_RING = POST_RING * ENVELOPE_BYTES // 4 + 1001
"""Floats that do not fit between two ranks at once."""


def numbers(rank: int, count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32) + rank


@on_both
@pytest.mark.parametrize("count", [0, 1, 50_000, BEYOND_THE_RING])
def test_two_ranks_that_both_post_before_they_take_do_not_wait_for_each_other(run, count):
    def work(comm: Comm) -> bool:
        other = 1 - comm.rank
        for turn in range(3):
            comm.post(numbers(comm.rank + turn, count), other, name=f"turn {turn}")
        arrived = [comm.take(torch.zeros(count), other, name=f"turn {turn}") for turn in range(3)]
        comm.settle()
        assert comm.sent_bytes["post"] == 3 * 4 * count
        assert "take" not in comm.sent_bytes or comm.sent_bytes["take"] == 0
        return all(torch.equal(x, numbers(other + turn, count)) for turn, x in enumerate(arrived))

    assert run(2, work) == [True, True]


@on_both
def test_what_does_not_fit_goes_on_while_the_sender_waits(run):
    def work(comm: Comm) -> float:
        if comm.rank == 0:
            for to in (1, 2):
                comm.post(numbers(to, BEYOND_THE_RING), to, name="large")
            comm.settle()
            return 0.0
        return comm.take(torch.zeros(BEYOND_THE_RING), 0, name="large")[-1].item()

    last = float(numbers(0, BEYOND_THE_RING)[-1])
    assert run(3, work) == [0.0, last + 1, last + 2]


@on_both
def test_posts_and_exchanges_of_one_pair_do_not_meet(run):
    def work(comm: Comm) -> tuple[float, float]:
        other = 1 - comm.rank
        comm.post(torch.full((3,), 1.0 + comm.rank), other, name="posted")
        got = comm.exchange(
            {other: torch.full((3,), 5.0)}, {other: torch.zeros(3)}, name="exchanged"
        )
        taken = comm.take(torch.zeros(3), other, name="posted")
        return got[other][0].item(), taken[0].item()

    assert run(2, work) == [(5.0, 2.0), (5.0, 1.0)]


@on_both
def test_another_name_is_not_taken(run):
    def work(comm: Comm) -> None:
        if comm.rank == 0:
            comm.post(torch.zeros(3), 1, name="one")
            comm.settle()
        else:
            comm.take(torch.zeros(3), 0, name="two")

    with pytest.raises(CommError):
        run(2, work)


@pytest.mark.parametrize("peer", [1, 7])
@on_both
def test_a_rank_posts_to_others_only(run, peer):
    def work(comm: Comm) -> None:
        if comm.rank == 1:
            comm.post(torch.zeros(1), peer)

    with pytest.raises(ValueError, match="post to"):
        run(2, work)
