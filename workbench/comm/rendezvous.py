"""Where the ranks of torch.distributed find each other; no port is ever open to other networks."""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed import FileStore, TCPStore


def file_store(path: str, size: int, timeout_s: float) -> FileStore:
    """Return a store in a file, for ranks on one host: no socket at all.

    ``path`` does not exist yet or is from this start; its folder is readable by this user only.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if os.stat(folder).st_mode & 0o077:
        raise ValueError(f"the store's folder {folder} is open to other users: make it mode 0700")
    store = FileStore(path, size)
    store.set_timeout(timedelta(seconds=timeout_s))
    return store


def tcp_store(
    host: str, port: int, size: int, timeout_s: float, listen_fd: int | None = None
) -> TCPStore:
    """Return a store at ``host:port``, for ranks on several hosts.

    One process serves it: the one that gives ``listen_fd``, a listening socket that the caller has
    bound to the private address ``host``. (Without one torch would listen on all networks.)
    The store takes the socket over.
    """
    return TCPStore(
        host,
        port,
        world_size=size,
        is_master=listen_fd is not None,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listen_fd,
    )
