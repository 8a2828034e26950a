"""Calls of Linux that Pythons lack: those of conda-forge and uv the first two, all the third.

Those are built against a C library that is older than the calls, so ``os`` has no function for them
although the kernel that runs them does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
PIDFD_OPEN = 434  # on every machine, as for all calls that Linux got after 2018
RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
MFD_CLOEXEC = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def memfd_create(name: str) -> int:
    """Return a descriptor of new anonymous memory; children do not inherit it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    number = MEMFD_CREATE.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"memfd_create on {platform.machine()}")
    return _call(number, os.fsencode(name), MFD_CLOEXEC)


def pidfd_open(pid: int) -> int:
    """Return a descriptor that is readable from when process ``pid`` has ended."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _call(PIDFD_OPEN, pid, 0)  # the kernel always sets close-on-exec


def exchange(one: str, other: str) -> None:
    """Let two files or folders change names, at one stroke.

    Raises
    ------
    OSError
        ENOSYS or EINVAL where the kernel or the file system cannot.
    """
    number = RENAMEAT2.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"renameat2 on {platform.machine()}")
    names = os.fsencode(one), os.fsencode(other)
    _call(number, AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)


def _call(number: int, *arguments: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(number, *arguments)
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return descriptor
