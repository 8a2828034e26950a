"""Collectives between real processes: all backends of one host, and peers that die, stop or err."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.comm.torch_backend import TorchComm

PROGRAM = Path(__file__).with_name("comm_ranks.py")

on_both = pytest.mark.parametrize("backend", ["shared memory", "gloo"])


Ranks = Callable[[str, int, str], list[tuple[int, Any]]]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Run a check of comm_ranks.py; the wait status of every rank, and what it said."""
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(backend: str, size: int, check: str) -> list[tuple[int, Any]]:
        print(json.dumps([backend, size, check]), file=program.stdin, flush=True)
        return [(status, said) for status, said in json.loads(program.stdout.readline())]

    with program:
        yield run
        program.stdin.close()
        try:
            program.wait(10)
        finally:
            program.kill()


@on_both
@pytest.mark.timeout(60)
def test_every_collective_between_processes(ranks, backend):
    for status, listening in ranks(backend, 3, "everything"):
        assert status == 0
        assert set(listening) == {"127.0.0.1"}


@on_both
@pytest.mark.timeout(60)
def test_a_killed_rank_is_noticed_by_all_others(ranks, backend):
    *survivors, killed = ranks(backend, 3, "one_is_killed")
    assert killed == (9, None)
    assert [status for status, _ in survivors] == [75 << 8] * 2
    assert any("rank 2" in said and "is gone" in said for _, said in survivors)
    assert all("all_reduce of 'step" in said for _, said in survivors)


@on_both
@pytest.mark.timeout(60)
def test_a_stopped_rank_is_noticed_within_the_time_limit(ranks, backend):
    *survivors, _ = ranks(backend, 2, "one_is_stopped")
    for status, said in survivors:
        assert status == 75 << 8
        assert "all_reduce of 'after the stop': rank 1" in said


@on_both
@pytest.mark.parametrize(
    ("check", "words"),
    [("sizes_differ", "1000 float32"), ("other_operations", "all_gather of float32")],
)
@pytest.mark.timeout(60)
def test_disagreement_is_an_error_and_no_crash(ranks, backend, check, words):
    answers = ranks(backend, 2, check)
    assert [status for status, _ in answers] == [75 << 8] * 2
    assert all(words in said and "asked for" in said for _, said in answers)


@on_both
@pytest.mark.timeout(60)
def test_groups_of_processes(ranks, backend):
    for status, said in ranks(backend, 4, "groups"):
        assert status == 0
        if backend == "shared memory":
            before, now = said
            assert now == before


@on_both
@pytest.mark.timeout(60)
def test_groups_that_do_not_fit_are_refused_by_all(ranks, backend):
    for rank, (status, said) in enumerate(ranks(backend, 3, "groups_differ")):
        assert status == 75 << 8
        words = "rank 0 names the group [0, 1, 2], rank 1 the group [1]"
        assert said == f"rank {rank}, split of 'the mesh': {words}"


@on_both
@pytest.mark.timeout(60)
def test_a_killed_rank_is_noticed_in_its_groups(ranks, backend):
    *survivors, killed = ranks(backend, 4, "one_of_a_group_is_killed")
    assert killed == (9, None)
    assert [status for status, _ in survivors] == [75 << 8] * 3
    assert "rank 3" in survivors[2][1]
    assert "is gone" in survivors[2][1]
    assert all("all_reduce of 'step" in said for _, said in survivors)


@pytest.mark.timeout(15)  # less than the time limit of the ranks
def test_a_rank_that_dies_while_groups_form_is_noticed(ranks):
    *survivors, killed = ranks("shared memory", 3, "one_dies_before_its_group")
    assert killed == (9, None)
    for status, said in survivors:
        assert status == 75 << 8
        assert "rank 2" in said
        assert "is gone" in said


@on_both
@pytest.mark.timeout(60)
@pytest.mark.parametrize("check", ["two_phases", "posted"])
def test_processes_compute_while_messages_travel(ranks, backend, check):
    assert ranks(backend, 3, check) == [(0, None)] * 3


@on_both
@pytest.mark.timeout(15)  # less than the time limit of the ranks
def test_a_posted_message_of_another_name_is_found_out_at_once(ranks, backend):
    _, (status, said) = ranks(backend, 2, "posts_differ")
    assert status == 75 << 8
    assert "take of 'stage 2'" in said
    assert said.count("message of 4 float32 named #") == 2


@on_both
@pytest.mark.timeout(15)  # less than the time limit of the ranks
@pytest.mark.parametrize("check", ["dies_before_it_takes", "settles_for_the_dead"])
def test_who_posts_to_a_dead_rank_hears_of_it(ranks, backend, check):
    (status, said), killed = ranks(backend, 2, check)
    assert killed == (9, None)
    assert status == 75 << 8
    assert "rank 1" in said
    assert "is gone" in said


@on_both
@pytest.mark.timeout(15)
def test_a_message_that_does_not_come_within_the_limit_ends_the_rank(ranks, backend):
    (status, said), (other, _) = ranks(backend, 2, "posted_beyond_the_limit")
    assert status == 75 << 8
    assert other == 0
    assert "take of 'too late'" in said
    assert "rank 1" in said


@on_both
@pytest.mark.timeout(60)
def test_an_unfinished_exchange_holds_no_process(ranks, backend):
    assert ranks(backend, 2, "never_finished") == [(0, None)] * 2


@on_both
@pytest.mark.timeout(60)
def test_a_message_of_another_name_is_refused(ranks, backend):
    answers = ranks(backend, 2, "names_differ")
    assert [status for status, _ in answers] == [75 << 8] * 2
    named = [said for _, said in answers if "message of 4 float32 named #" in said]
    assert named
    assert all(f"exchange of 'conv{rank}'" in said for rank, (_, said) in enumerate(answers))


@pytest.mark.timeout(60)
def test_ranks_meet_at_a_socket_that_was_bound_before(ranks):
    for status, listening in ranks("gloo", 2, "over_tcp"):
        assert status == 0
        assert set(listening) == {"127.0.0.1"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs 2 GPUs, one per rank")
@pytest.mark.timeout(60)
def test_every_collective_over_nccl(ranks):
    assert [status for status, _ in ranks("nccl", 2, "everything")] == [0, 0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs 2 GPUs, one per rank")
@pytest.mark.timeout(60)
def test_messages_are_posted_over_nccl_and_another_name_is_found_out(ranks):
    assert ranks("nccl", 2, "posted") == [(0, None)] * 2
    _, (status, said) = ranks("nccl", 2, "posts_differ")
    assert status == 75 << 8
    assert "take of 'stage 2'" in said


def test_backends_refuse_the_wrong_device():
    with pytest.raises(ValueError, match="gloo does not move tensors on cuda"):
        TorchComm("gloo", 0, 2, None, 1.0, device="cuda")
