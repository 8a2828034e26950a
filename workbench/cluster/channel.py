"""Framed messages, with open file descriptors, over a Unix stream socket."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

_HEADER = struct.Struct("!BBQ")
_MOST_DESCRIPTORS = 8
_JOINED_BYTES = 1 << 16


class Frame(NamedTuple):
    """One message: its kind, its bytes and the descriptors that came with it (ours to close)."""

    kind: str
    body: bytes
    descriptors: tuple[int, ...]


class Channel:
    """One end of a socket pair between two of our own processes.

    Descriptors travel in the ancillary data of a frame's header. A header is received by itself,
    with its exact length, so descriptors can never be taken for those of another frame.
    Several threads may send; one receives.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor of the socket, to select on."""
        return self._socket.fileno()

    def send(self, kind: str, body: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send one frame.

        Raises
        ------
        OSError
            The other end is gone.
        """
        if len(descriptors) > _MOST_DESCRIPTORS:
            raise ValueError(f"{len(descriptors)} descriptors in one frame; at most 8 fit")
        name = kind.encode()
        head = _HEADER.pack(len(descriptors), len(name), len(body)) + name
        joined = len(body) <= _JOINED_BYTES
        with self._sending:
            first = head + body if joined else head
            if descriptors:
                sent = socket.send_fds(self._socket, [first], list(descriptors))
            else:
                sent = self._socket.send(first)
            if sent < len(first):
                self._socket.sendall(memoryview(first)[sent:])
            if not joined:
                self._socket.sendall(body)

    def receive(self) -> Frame | None:
        """Return the next frame, or None when the other end is gone (also in mid-frame)."""
        try:
            head, descriptors, _, _ = socket.recv_fds(self._socket, _HEADER.size, _MOST_DESCRIPTORS)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            head += self._exactly(_HEADER.size - len(head)) if head else b""
            if not head:
                return None
            _, name_length, body_length = _HEADER.unpack(head)
            kind = self._exactly(name_length).decode()
            return Frame(kind, self._exactly(body_length), tuple(descriptors))
        except (EOFError, ConnectionError):
            return None

    def close(self) -> None:
        """Close this end; the other one sees end of file."""
        self._socket.close()

    def _exactly(self, length: int) -> bytes:
        if length == 0:
            return b""
        buffer = bytearray(length)
        view, filled = memoryview(buffer), 0
        while filled < length:
            count = self._socket.recv_into(view[filled:])
            if count == 0:
                raise EOFError
            filled += count
        return bytes(buffer)
