"""Arrays that two processes map, and the channel by which they get there."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from shared_memory_left import open_memory

from workbench.cluster.channel import Channel
from workbench.cluster.shared_array import allocate, attach, descriptor_of, holding, shared


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (4, 3)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "?", "u1", "c16", ">f4"])
def test_an_array_is_the_same_memory_wherever_it_is_attached(shape, dtype):
    array = allocate(shape, dtype)
    assert (array.shape, array.dtype, array.any()) == (shape, np.dtype(dtype), False)
    descriptor = descriptor_of(array)
    assert descriptor is not None
    other = attach(descriptor, shape, dtype)
    array[...] = 1
    np.testing.assert_array_equal(other, array)
    assert not other.flags.writeable
    writable = attach(descriptor, shape, dtype, writable=True)
    writable[...] = 0
    np.testing.assert_array_equal(array, writable)


@pytest.mark.parametrize("given", [np.float32(3), np.zeros((2, 0)), np.arange(6).reshape(2, 3)])
def test_what_is_written_to_new_memory_is_there_and_can_be_shared_as_it_is(given):
    array = np.asarray(given)
    held = holding(array.reshape(-1).view(np.uint8).data, array.shape, array.dtype)
    np.testing.assert_array_equal(held, array)
    assert held.dtype == array.dtype
    assert held.flags.writeable
    assert descriptor_of(held) is not None


def test_memory_and_descriptors_go_with_the_last_array():
    gc.collect()
    before = open_memory("workbench-array")
    array = allocate((1000,), "f8")
    view = array.reshape(10, 100)[2:]
    del array
    view[...] = 1  # still mapped
    del view
    gc.collect()
    assert open_memory("workbench-array") == before


def test_only_a_whole_array_in_order_is_shared_as_it_is():
    array = allocate((4, 6), "f4")
    assert shared(array) is array
    assert shared(array.reshape(24)).base is not None
    for other in (
        array[1:],
        array[:, 1:],
        array.T,
        np.ones((4, 6)),
        pickle.loads(pickle.dumps(array)),
    ):
        assert descriptor_of(other) is None
        copy = shared(other)
        assert descriptor_of(copy) is not None
        np.testing.assert_array_equal(copy, other)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = (Channel(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


def test_frames_arrive_in_order_with_their_descriptors(ends):
    left, right = ends
    array = allocate((3,), "i8")
    array[:] = 1, 2, 3
    descriptor = descriptor_of(array)
    left.send("plain", b"abc")
    left.send("array", b"", [descriptor])
    left.send("empty")
    assert right.receive() == ("plain", b"abc", ())
    kind, _, (received,) = right.receive()
    assert kind == "array"
    np.testing.assert_array_equal(attach(received, (3,), "i8"), [1, 2, 3])
    assert not os.get_inheritable(received)
    os.close(received)
    assert right.receive() == ("empty", b"", ())


def test_large_frames_of_several_threads_are_not_mixed(ends):
    left, right = ends
    bodies = [bytes([n]) * 300_000 for n in range(6)]
    threads = [threading.Thread(target=left.send, args=(str(n), b)) for n, b in enumerate(bodies)]
    for thread in threads:
        thread.start()
    received = dict(right.receive()[:2] for _ in bodies)
    for thread in threads:
        thread.join()
    assert received == {str(n): body for n, body in enumerate(bodies)}


@pytest.mark.parametrize("sent", [b"", b"\x00\x05", b"\x00\x05\x00\x00\x00\x00\x00\x00\x00\x09pla"])
def test_the_end_of_the_other_side_is_the_end_also_within_a_frame(sent):
    left, right = socket.socketpair()
    channel = Channel(right)
    left.sendall(sent)
    left.close()
    assert channel.receive() is None
    with pytest.raises(OSError, match="Broken pipe"):
        channel.send("late")
    channel.close()


def test_too_many_descriptors_are_refused(ends):
    with pytest.raises(ValueError, match="at most 8"):
        ends[0].send("many", b"", range(9))
