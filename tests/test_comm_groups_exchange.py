"""Exchanges in two phases, and names that guard messages."""

from __future__ import annotations

import pytest
import torch
from comm_threads import on_both

from workbench.comm.comm import Comm, CommError
from workbench.comm.connect import SoloComm

BEYOND_THE_RING = 1_000_003
"""Bytes of a message that shared memory cannot take without the receiver."""


def bytes_of(rank: int, numel: int) -> torch.Tensor:
    return (torch.arange(numel) % 251 + rank).to(torch.uint8)


@on_both
@pytest.mark.parametrize("numel", [0, 1, 40_000, BEYOND_THE_RING])
def test_what_was_started_arrives_at_the_end(run, numel):
    def work(comm: Comm) -> dict[int, torch.Tensor]:
        peers = [peer for peer in range(comm.size) if peer != comm.rank]
        outgoing = {peer: bytes_of(comm.rank, numel) for peer in peers}
        incoming = {peer: torch.zeros(2, numel, dtype=torch.uint8).T[:, 0] for peer in peers}
        exchange = comm.start_exchange(outgoing, incoming, name="halo")
        torch.ones(100, 100).mm(torch.ones(100, 100))
        received = exchange.finish()
        assert received is incoming
        assert exchange.finish() is incoming
        assert comm.sent_bytes["exchange"] == numel * len(peers)
        assert comm.calls["exchange"] == 1
        return dict(received)

    for rank, received in enumerate(run(3, work)):
        assert sorted(received) == [peer for peer in range(3) if peer != rank]
        assert all(torch.equal(t, bytes_of(peer, numel)) for peer, t in received.items())


@on_both
def test_a_small_message_leaves_before_the_end_is_asked_for(run):
    def work(comm: Comm) -> float:
        group = comm.split([0, 1])
        if comm.rank == 0:
            exchange = comm.start_exchange({1: torch.full((5,), 3.0)}, {}, name="early")
            # Only to prove the point: rank 1 must have the message before rank 0 goes on.
            assert group.recv(torch.zeros(()), 1).item() == 3
            exchange.finish()
            return 3.0
        value = comm.recv(torch.zeros(5), 0, name="early")[0]
        group.send(value, 0)
        return value.item()

    assert run(2, work) == [3, 3]


@on_both
def test_the_time_between_start_and_finish_is_not_counted(run):
    def work(comm: Comm) -> None:
        spans: list[tuple[str, str, float, float, int]] = []
        comm.on_span = lambda *span: spans.append(span)
        peer = 1 - comm.rank
        exchange = comm.start_exchange({peer: torch.ones(9)}, {peer: torch.ones(9)}, name="halo")
        spans.append(("own", "work", 0.0, 0.0, 0))
        exchange.finish()
        kinds = [kind for kind, *_ in spans]
        assert kinds[:2] == ["comm", "own"]
        assert kinds[-1] == "comm"
        assert set(kinds[2:]) <= {"comm", "wait"}
        assert [sent for *_, sent in spans] == [0] * (len(spans) - 1) + [36]
        times = sum(stop - start for _, _, start, stop, _ in spans)
        assert times == pytest.approx(comm.comm_s + comm.wait_s)

    run(2, work)


@on_both
def test_other_calls_wait_for_the_end(run):
    def work(comm: Comm) -> float:
        peer = 1 - comm.rank
        exchange = comm.start_exchange({peer: torch.ones(9)}, {peer: torch.zeros(9)}, name="halo")
        with pytest.raises(RuntimeError, match="barrier: first finish the exchange of 'halo'"):
            comm.barrier()
        exchange.finish()
        return comm.all_reduce(torch.ones(())).item()

    assert run(2, work) == [2, 2]


@on_both
@pytest.mark.parametrize("numel", [1, BEYOND_THE_RING])
def test_an_exchange_that_is_never_finished_holds_nobody(run, numel):
    def work(comm: Comm) -> None:
        message = torch.ones(numel, dtype=torch.uint8)
        peer = 1 - comm.rank
        exchange = comm.start_exchange({peer: message}, {peer: message.clone()})
        comm.close()
        with pytest.raises(CommError, match="cannot be used"):
            exchange.finish()

    run(2, work)


@on_both
def test_a_peer_that_leaves_is_noticed_at_the_end(run):
    said: list[str] = []

    def work(comm: Comm) -> None:
        if comm.rank == 1:
            raise KeyError("the cause")
        exchange = comm.start_exchange({1: torch.ones(2)}, {1: torch.ones(2)}, name="halo")
        with pytest.raises(CommError) as error:
            exchange.finish()
        said.append(str(error.value))

    with pytest.raises(KeyError, match="the cause"):
        run(2, work)
    assert said == ["rank 0, exchange of 'halo': rank 1 has closed its communicator"]


NAMES = {"another": ("conv2", "conv1"), "none": (None, "conv1"), "unexpected": ("conv2", None)}


@on_both
@pytest.mark.parametrize(("sent", "expected"), NAMES.values(), ids=NAMES)
def test_a_message_of_another_name_is_refused(run, sent, expected):
    said: list[str] = []

    def work(comm: Comm) -> None:
        if comm.rank == 1:
            comm.send(torch.ones(4), 0, name=sent)
            return
        untouched = torch.zeros(4)
        with pytest.raises(CommError) as error:
            comm.exchange({}, {1: untouched}, name=expected)
        assert not untouched.any()
        said.append(str(error.value))

    run(2, work)
    (sentence,) = said
    assert "rank 1 sent" in sentence
    assert "expected" in sentence
    assert expected is None or f"exchange of {expected!r}" in sentence


@on_both
def test_names_of_any_text_guard_messages(run):
    def work(comm: Comm) -> float:
        name = "Fältung " * 50
        if comm.rank == 0:
            comm.send(torch.tensor(7.0), 1, name=name)
            return 7.0
        return comm.recv(torch.zeros(()), 0, name=name).item()

    assert run(2, work) == [7, 7]


def test_an_exchange_with_nobody_ends_at_once():
    with SoloComm() as comm:
        exchange = comm.start_exchange({}, {})
        comm.barrier()
        assert exchange.finish() == {}
