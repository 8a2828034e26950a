"""Ranks as real processes: started by test_comm_processes.py, not collected by pytest.

For every line ``[backend, size, check]`` of JSON on its input this forks so many ranks, which all
run the function of that name. It answers with a line of JSON: for every rank its wait status, and
what the check returned or the CommError said.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time

import psutil
import torch
from comm_threads import check_collectives

from workbench.comm.arguments import REDUCIBLE
from workbench.comm.comm import Comm, CommError
from workbench.comm.connect import connect
from workbench.comm.kernel import memfd_create
from workbench.comm.torch_backend import TorchComm, file_store, tcp_store
from workbench.mesh import balanced
from workbench.plan import Collective


def made(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    values = torch.arange(numel, dtype=torch.float64) % 13 + rank / 3
    return values > 6 if dtype == torch.bool else values.to(dtype)


def everything(comm: Comm) -> list[str]:
    """Compare every collective with plain arithmetic; return the addresses this rank listens at."""
    size, rank = comm.size, comm.rank
    for dtype in REDUCIBLE:
        for numel in (0, 1, 5, 1001, 70_001):
            whole = made(0, numel, dtype)
            for other in range(1, size):
                whole = whole + made(other, numel, dtype)
            share = whole[slice(*balanced(numel, size, rank))]
            assert torch.equal(comm.all_reduce(made(rank, numel, dtype)), whole), (dtype, numel)
            assert torch.equal(comm.reduce_scatter(made(rank, numel, dtype)), share), (dtype, numel)
    largest = comm.all_reduce(torch.tensor([[rank, -rank]]), "max")
    assert largest.tolist() == [[size - 1, 0]]
    gathered = comm.all_gather(made(rank, 3 * rank, torch.int16).view(rank, 3))
    assert [tuple(t.shape) for t in gathered] == [(other, 3) for other in range(size)]
    assert all(torch.equal(t.view(-1), made(r, 3 * r, torch.int16)) for r, t in enumerate(gathered))
    root = comm.broadcast(made(rank, 99, torch.float32).to(torch.float8_e4m3fn), size - 1)
    assert torch.equal(root.float(), made(size - 1, 99, torch.float32).to(root.dtype).float())
    before, after = (rank - 1) % size, (rank + 1) % size
    for numel in (0, 4, 300_000):
        received = torch.zeros(numel)
        comm.exchange({after: made(rank, numel, torch.float32)}, {before: received})
        assert torch.equal(received, made(before, numel, torch.float32))
    if rank == 0:
        comm.send(torch.tensor(7.5), 1)
    elif rank == 1:
        assert comm.recv(torch.zeros(()), 0) == 7.5
    common = comm.common(size, torch.float32)
    assert (common is None) == (comm.backend == "gloo")
    if common is not None:
        common[rank] = rank
        comm.lend(4)
        assert common.tolist() == list(range(size))
    allocated = comm.allocate(50_000, torch.float32)
    allocated += rank
    assert comm.all_reduce(allocated[7:]).unique().tolist() == [size * (size - 1) / 2]
    comm.barrier()
    counted = comm.sent_bytes["broadcast"]
    assert counted == Collective("", "broadcast", ("data",), 99, 1, "start").sent_bytes(
        size, (rank + 1) % size
    )
    return listening()


def one_is_killed(comm: Comm) -> None:
    """Let the last rank die in the middle of the others' work."""
    for step in range(1_000_000):
        if comm.rank == comm.size - 1 and step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.all_reduce(torch.ones(100_000), name=f"step {step}")


def groups(comm: Comm) -> list[int]:
    """Check rows and columns of a 2 x 2 mesh; return how many files were open, then and now."""
    check_collectives(comm)
    before = len(os.listdir("/proc/self/fd"))
    row, column = rows_and_columns(comm)
    alone = comm.split([comm.rank])
    for each in (row, column, alone, row):
        check_collectives(each)
        assert comm.all_reduce(torch.ones(())) == 4
    value = torch.tensor(float(10**comm.rank))
    column.all_reduce(row.all_reduce(value))
    assert value == 1111
    assert column.sent_bytes is comm.sent_bytes
    assert listening() in ([], ["127.0.0.1"] * len(listening()))
    row.close()
    check_collectives(column)
    comm.barrier()
    for group in (column, alone):
        group.close()
    return [before, len(os.listdir("/proc/self/fd"))]


def rows_and_columns(comm: Comm) -> tuple[Comm, Comm]:
    """Return the groups of this rank on a 2 x 2 mesh."""
    row, column = divmod(comm.rank, 2)
    return comm.split([2 * row, 2 * row + 1]), comm.split([column, column + 2])


def groups_differ(comm: Comm) -> None:
    """Let rank 1 name another group than the others."""
    comm.split([1] if comm.rank == 1 else [0, 1, 2], name="the mesh")


def one_of_a_group_is_killed(comm: Comm) -> None:
    """Let the last rank die while its row is at work and the other row waits for its columns."""
    row, column = rows_and_columns(comm)
    for step in range(1_000_000):
        if comm.rank == comm.size - 1 and step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        row.all_reduce(torch.ones(100_000), name=f"step {step}")
        column.all_reduce(torch.ones(3), name=f"step {step}")


def one_dies_before_its_group(comm: Comm) -> None:
    """Let the last rank die when the groups are agreed on and before its own is formed."""
    if comm.rank == comm.size - 1:
        comm._split = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    comm.split(range(comm.size))


def two_phases(comm: Comm) -> None:
    """Compute while messages of any size travel, in both directions."""
    peers = [peer for peer in range(comm.size) if peer != comm.rank]
    for numel in (0, 5, 10_000, 400_000):
        outgoing = {peer: made(comm.rank, numel, torch.float32) for peer in peers}
        incoming = {peer: torch.empty(numel) for peer in peers}
        exchange = comm.start_exchange(outgoing, incoming, name=f"{numel} numbers")
        torch.ones(200, 200).mm(torch.ones(200, 200))
        for peer, received in exchange.finish().items():
            assert torch.equal(received, made(peer, numel, torch.float32))
    assert comm.sent_bytes["exchange"] == 4 * 410_005 * len(peers)


def posted(comm: Comm) -> None:
    """Post before taking, more than fits between two ranks, in both directions."""
    peers = [peer for peer in range(comm.size) if peer != comm.rank]
    for numel in (0, 5, 2_000_000):
        for peer in peers:
            comm.post(made(comm.rank, numel, torch.float32), peer, name=f"{numel} numbers")
        for peer in peers:
            received = comm.take(torch.empty(numel), peer, name=f"{numel} numbers")
            assert torch.equal(received, made(peer, numel, torch.float32))
        comm.settle()
    assert comm.sent_bytes["post"] == 4 * 2_000_005 * len(peers)


def posts_differ(comm: Comm) -> None:
    """Take a message of another name than the one that comes; the sender waits for an answer."""
    if comm.rank == 0:
        comm.post(torch.ones(4), 1, name="stage 1")
    else:
        comm.take(torch.ones(4), 0, name="stage 2")
    comm.barrier(name="afterwards")


def dies_before_it_takes(comm: Comm) -> None:
    """Post more than fits to a rank that is killed, and wait for one that it will not send."""
    if comm.rank == 1:
        comm.take(torch.ones(3), 0, name="first")
        os.kill(os.getpid(), signal.SIGKILL)
    comm.post(torch.ones(3), 1, name="first")
    comm.post(torch.ones(3_000_000), 1, name="second")
    comm.take(torch.ones(3), 1, name="never")


def settles_for_the_dead(comm: Comm) -> None:
    """Post more than fits to a rank that is killed."""
    if comm.rank == 1:
        comm.take(torch.ones(3), 0, name="first")
        os.kill(os.getpid(), signal.SIGKILL)
    comm.post(torch.ones(3), 1, name="first")
    comm.post(torch.ones(60_000_000), 1, name="second")
    comm.settle()


def posted_beyond_the_limit(comm: Comm) -> None:
    """Wait for a message from a rank that is busy for longer than the time limit."""
    if comm.rank == 1:
        time.sleep(2.5)
        return
    comm.take(torch.ones(3), 1, name="too late")


def never_finished(comm: Comm) -> None:
    """Leave exchanges of all sizes unfinished, on a group and on the whole, and close."""
    group = comm.split(range(comm.size))
    peer = (comm.rank + 1) % comm.size
    group.start_exchange({peer: torch.ones(3)}, {peer: torch.ones(3)})
    left = comm.start_exchange({peer: torch.ones(400_000)}, {peer: torch.ones(400_000)})
    comm.close()
    del left


def names_differ(comm: Comm) -> None:
    """Exchange messages of one size under two names."""
    peer = 1 - comm.rank
    name = f"conv{comm.rank}"
    comm.exchange({peer: torch.ones(4)}, {peer: torch.ones(4)}, name=name)


def one_is_stopped(comm: Comm) -> None:
    """Let the last rank stop without dying."""
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    comm.all_reduce(torch.ones(3), name="after the stop")


def sizes_differ(comm: Comm) -> None:
    """Let every rank ask for another size."""
    comm.all_reduce(torch.ones(1000 * (comm.rank + 1)))


def other_operations(comm: Comm) -> None:
    """Let rank 0 ask for something else than the others."""
    if comm.rank == 0:
        comm.all_gather(torch.ones(3))
    else:
        comm.all_reduce(torch.ones(3))


def over_tcp(comm: Comm) -> list[str]:
    """Form a second group by a store on a socket that was bound before; return the addresses."""
    host, port = LISTENING.getsockname()
    store = tcp_store(
        host, port, comm.size, TIMEOUT_S, LISTENING.detach() if comm.rank == 0 else None
    )
    with TorchComm("gloo", comm.rank, comm.size, store, TIMEOUT_S) as second:
        assert second.all_reduce(torch.ones(5)).tolist() == [comm.size] * 5
        comm.barrier()
    return listening()


def listening() -> list[str]:
    """Return the addresses at which this process listens."""
    connections = psutil.Process().net_connections()
    return [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]


LISTENING = socket.create_server(("127.0.0.1", 0))
CHECKS = (
    everything, one_is_killed, one_is_stopped, sizes_differ, other_operations, over_tcp, groups,
    groups_differ, one_of_a_group_is_killed, one_dies_before_its_group, two_phases, posted,
    never_finished, names_differ, posts_differ, dies_before_it_takes, settles_for_the_dead,
    posted_beyond_the_limit,
)  # fmt: skip
TIMEOUT_S = 20.0


def rank_main(backend: str, rank: int, size: int, check: str, fd: int, store_file: str) -> object:
    torch.set_num_threads(1)
    timeout_s = {"one_is_stopped": 0.5, "posted_beyond_the_limit": 1.0}.get(check, TIMEOUT_S)
    store = None if backend == "shared memory" else file_store(store_file, size, TIMEOUT_S)
    device = "cpu"
    if backend == "nccl":
        device = f"cuda:{rank}"
        torch.set_default_device(device)
    comm = connect(backend, rank, size, fd=fd, store=store, device=device, timeout_s=timeout_s)
    (work,) = (work for work in CHECKS if work.__name__ == check)
    return work(comm)


def answer(backend: str, size: int, check: str) -> list[tuple[int, object]]:
    fd = memfd_create("comm test")
    ranks = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(size):
            hear, tell = os.pipe()
            if (pid := os.fork()) == 0:
                try:
                    said, status = rank_main(backend, rank, size, check, fd, f"{folder}/store"), 0
                except CommError as error:
                    said, status = str(error), 75
                os.write(tell, json.dumps(said).encode())
                os._exit(status)  # as ranks do after an error; the peers notice nothing else
            os.close(tell)
            ranks.append((pid, hear))
        results = []
        for pid, hear in ranks:
            # The dead are collected late: their peers must notice all the same.
            if check == "one_is_stopped" and pid == ranks[-1][0]:
                os.kill(pid, signal.SIGKILL)
            with open(hear, "rb") as pipe:
                text = pipe.read()
            results.append((pid, json.loads(text) if text else None))
    os.close(fd)
    return [(os.waitpid(pid, 0)[1], said) for pid, said in results]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
