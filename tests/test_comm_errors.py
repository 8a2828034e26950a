"""What goes wrong between ranks is a CommError that names it, never a hang."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from comm_threads import Work, on_both, run_shared
from shared_memory_left import open_memory

from workbench.comm import kernel
from workbench.comm.comm import Comm, CommError
from workbench.comm.connect import SoloComm, choose, connect
from workbench.comm.shared_memory import SharedMemoryComm
from workbench.comm.threads import Table, ThreadComm, run_threads

DISAGREEMENTS: dict[str, tuple[Work, Work, str]] = {
    "operation": (
        lambda comm: comm.all_reduce(torch.zeros(3)),
        lambda comm: comm.barrier(),
        "barrier",
    ),
    "reduction": (
        lambda comm: comm.all_reduce(torch.zeros(3), "max"),
        lambda comm: comm.all_reduce(torch.zeros(3), "min"),
        "min",
    ),
    "dtype": (
        lambda comm: comm.all_gather(torch.zeros(3)),
        lambda comm: comm.all_gather(torch.zeros(3, dtype=torch.int32)),
        "int32",
    ),
    "size": (
        lambda comm: comm.all_reduce(torch.zeros(3)),
        lambda comm: comm.all_reduce(torch.zeros(3_000_000)),
        "3000000",
    ),
    "root": (
        lambda comm: comm.broadcast(torch.zeros(3), 0),
        lambda comm: comm.broadcast(torch.zeros(3), 1),
        "from rank",
    ),
    "message": (
        lambda comm: comm.recv(torch.zeros(3), 1),
        lambda comm: (comm.send(torch.zeros(4), 0), comm.barrier()),
        "4",
    ),
}


@on_both
@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_are_told_both_sides(run, what):
    first, second, theirs = DISAGREEMENTS[what]
    said: dict[int, str] = {}

    def work(comm: Comm) -> None:
        try:
            (second if comm.rank == 1 else first)(comm)
        except CommError as error:
            said[comm.rank] = str(error)
            raise

    with pytest.raises(CommError):
        run(2, work)
    assert set(said) == {0, 1}
    assert theirs in said[0]
    assert "rank 1" in said[0]


@on_both
def test_a_rank_that_never_comes_is_named_with_the_call(run):
    finished = threading.Event()

    def work(comm: Comm) -> None:
        if comm.rank == 1:
            finished.wait(10)
            return
        try:
            comm.all_reduce(torch.zeros(3), name="gradients, bucket 7")
        finally:
            finished.set()

    with pytest.raises(CommError, match=r"all_reduce of 'gradients, bucket 7': rank 1.* did not"):
        run(2, work, timeout_s=0.2)


@on_both
def test_a_rank_that_leaves_ends_the_others_waiting(run):
    def work(comm: Comm) -> None:
        if comm.rank == 1:
            raise KeyError("the cause")
        comm.recv(torch.zeros(2), source=1)

    with pytest.raises(KeyError, match="the cause"):
        run(3, work)


@on_both
def test_a_rank_may_leave_when_it_has_done_its_part(run):
    def work(comm: Comm) -> torch.Tensor:
        if comm.rank == 0:
            comm.send(torch.ones(5), 1)
            return comm.all_reduce(torch.ones(1))
        reduced = comm.all_reduce(torch.ones(1))
        comm.recv(torch.empty(5), 0)
        return reduced

    assert [t.item() for t in run(2, work)] == [2, 2]


@on_both
def test_after_an_error_and_after_close_it_cannot_be_used(run):
    def work(comm: Comm) -> None:
        with pytest.raises(CommError, match="asked for"):
            comm.all_reduce(torch.zeros(2 + comm.rank))
        with pytest.raises(CommError, match="cannot be used"):
            comm.barrier()
        comm.close()
        comm.close()
        with pytest.raises(CommError, match="cannot be used"):
            comm.barrier()

    run(2, work)


def test_shared_memory_leaves_no_file_descriptor():
    run_shared(3, lambda comm: comm.allocate(10, torch.float32).sum().item())
    before = open_memory()
    run_shared(3, lambda comm: comm.allocate(10, torch.float32).sum().item())
    assert open_memory() <= before


def test_pythons_without_the_newest_system_calls(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delattr(os, "pidfd_open")
    memory, process = kernel.memfd_create("comm test"), kernel.pidfd_open(os.getpid())
    os.ftruncate(memory, 10)
    assert os.fstat(memory).st_size == 10
    assert not os.get_inheritable(memory)
    assert not os.get_inheritable(process)
    with pytest.raises(ProcessLookupError):
        kernel.pidfd_open(2**22 + 1)
    os.close(memory)
    os.close(process)


def test_memory_of_an_earlier_start_is_refused():
    fd = kernel.memfd_create("comm test")
    with pytest.raises(CommError, match=r"rank 1 did not come within 0\.05 s"):
        SharedMemoryComm(0, 2, fd, 0.05)
    with pytest.raises(CommError, match="used by other ranks"):
        SharedMemoryComm(0, 2, fd, 0.05)
    os.close(fd)


def test_one_rank_needs_nobody():
    with SoloComm() as comm:
        tensor = torch.arange(4.0)
        assert comm.all_reduce(tensor) is tensor
        assert comm.reduce_scatter(tensor).tolist() == [0, 1, 2, 3]
        assert comm.all_gather(tensor)[0].tolist() == [0, 1, 2, 3]
        assert comm.broadcast(tensor).tolist() == [0, 1, 2, 3]
        assert comm.exchange({}, {}) == {}
        assert comm.allocate(3, torch.int16).tolist() == [0, 0, 0]
        comm.barrier()
        assert sum(comm.sent_bytes.values()) == 0
        assert comm.comm_s == comm.wait_s == 0
        with pytest.raises(ValueError, match="the other ranks are none"):
            comm.send(tensor, 0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda comm: comm.all_reduce(torch.zeros(2), "mean"), "no reduction 'mean'"),
        (lambda comm: comm.all_reduce(torch.zeros(2) * 1j, "max"), "have no order"),
        (lambda comm: comm.all_reduce(torch.zeros(2).to(torch.uint16)), "cannot add torch.uint16"),
        (lambda comm: comm.all_reduce(torch.zeros(2, device="meta")), "on cpu, not on meta"),
        (lambda comm: comm.broadcast(torch.zeros(2), 2), "only ranks 0-1"),
        (lambda comm: comm.send(torch.zeros(2), comm.rank), "cannot send to rank"),
        (lambda comm: comm.exchange({}, {-1: torch.zeros(2)}), "cannot exchange with rank -1"),
        (lambda comm: comm.allocate(-1, torch.float32), "cannot allocate -1"),
    ],
)
def test_a_wrong_argument_is_refused_and_harms_nobody(wrong, sentence):
    def work(comm: Comm) -> float:
        with pytest.raises(ValueError, match=sentence):
            wrong(comm)
        return comm.all_reduce(torch.ones(())).item()

    assert run_threads(2, work) == [2, 2]


def test_threads_end_with_the_first_real_error():
    def work(comm: Comm) -> None:
        if comm.rank == 2:
            raise RuntimeError("rank 2 is at fault")
        comm.barrier()

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="rank 2 is at fault"):
        run_threads(3, work)
    assert threading.active_count() == before


def test_a_thread_that_does_not_end_is_named():
    release = threading.Event()
    with pytest.raises(CommError, match=r"rank 1 of 2 did not end within 0\.1 s"):
        run_threads(2, lambda comm: comm.rank == 1 and release.wait(10), timeout_s=0.1)
    release.set()


def test_the_backend_follows_from_where_the_ranks_are():
    assert choose(["a"], "cuda") == "solo"
    assert choose(["a", "a"], "cpu") == "shared memory"
    assert choose(["a", "b"], "cpu") == "gloo"
    assert choose(["a", "a"], "cuda") == "nccl"
    assert connect("solo", 0, 1).backend == "solo"
    with pytest.raises(ValueError, match="at least 1 rank"):
        choose([], "cpu")
    with pytest.raises(ValueError, match="needs fd"):
        connect("shared memory", 0, 2)
    with pytest.raises(ValueError, match="needs store"):
        connect("gloo", 0, 2)
    with pytest.raises(ValueError, match="for 1 rank"):
        connect("solo", 0, 2)
    with pytest.raises(ValueError, match="no rank 2 among 2"):
        ThreadComm(2, Table(2), 1.0)
