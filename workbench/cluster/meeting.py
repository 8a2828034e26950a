"""Where the ranks of one run find each other, made by the host of rank 0."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.comm.kernel import memfd_create
from workbench.errors import RunError


@dataclass(frozen=True)
class Meeting:
    """The host's own end of a meeting place; :attr:`invitation` is what others are told.

    On one machine that is a memfd that all ranks map (no name, so nothing to leave behind), or for
    torch.distributed a file in a folder of our own (no port, so nobody else can come). Between
    machines it is a port, already bound to the one address by which the workers reach each other.
    """

    invitation: dict[str, Any]
    descriptor: int | None = None
    folder: Path | None = None

    def another_descriptor(self) -> int | None:
        """Return a descriptor of the meeting that is the caller's to close, if it has one."""
        return None if self.descriptor is None else os.dup(self.descriptor)

    def close(self) -> None:
        """Free what the host holds of it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_meeting(backend: str, *, one_machine: bool, address: str, folder: Path) -> Meeting:
    """Make the meeting place that ``backend`` needs.

    ``address`` is this host's, as other hosts reach it; ``folder`` a private one.
    """
    if backend == "solo":
        return Meeting({})
    if backend == "shared memory":
        descriptor = memfd_create("workbench-comm")
        return Meeting({"pid": os.getpid(), "descriptor": descriptor}, descriptor)
    if one_machine:
        own = Path(tempfile.mkdtemp(prefix="meeting-", dir=folder))
        return Meeting({"store_file": str(own / "store")}, folder=own)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        return Meeting({"store_address": [address, port]}, listener.detach())


def enter(invitation: dict[str, Any]) -> int | None:
    """Return a descriptor of our own of a meeting in shared memory; None for other meetings."""
    if "pid" not in invitation:
        return None
    try:
        return os.open(f"/proc/{invitation['pid']}/fd/{invitation['descriptor']}", os.O_RDWR)
    except OSError as error:
        raise RunError(
            f"The worker of rank 0, process {invitation['pid']}, shows no shared memory: {error}."
        ) from error
