"""What the workbench needs of a machine and its packages, one check for each."""

from __future__ import annotations

import mmap
import os
import platform
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from workbench import machine
from workbench.cli.english import count
from workbench.comm.kernel import memfd_create
from workbench.plan import in_binary_units

State = Literal["good", "note", "wrong"]

DISTRIBUTION = "dask-workbench"
ARCHITECTURES = ("x86_64", "aarch64")
LOW_MEMORY_BYTES = 2 * 2**30
"""Less free memory than this is worth a note: a rank with torch takes about 300 MiB."""

SOCKET_LIMIT_S = 2.0
EXTENSIONS = {
    "@bokeh/jupyter_bokeh": "jupyter_bokeh, which draws the live figures",
    "@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets, which shows the controls",
}
"""JupyterLab extensions that the panel needs, by the folder they install."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: ``state`` is "good", "note" (works, but know it) or "wrong"."""

    name: str
    state: State
    sentence: str


def examine() -> Iterator[Check]:
    """Yield every check, the machine first."""
    yield system()
    yield cores()
    yield gpus()
    yield memory()
    yield shared_memory()
    yield loopback()
    yield from packages()
    yield from extensions()


def system() -> Check:
    """Look at operating system and architecture."""
    here = f"{platform.system()} on {platform.machine()}"
    if sys.platform == "linux" and platform.machine() in ARCHITECTURES:
        return Check("system", "good", f"{here}, Python {platform.python_version()}.")
    return Check("system", "wrong", f"{here}: ranks run on Linux only, x86-64 or ARM64.")


def cores() -> Check:
    """Look at the cores that may be used."""
    usable, physical, all_threads = machine.cores(), machine.physical_cores(), os.cpu_count()
    found = f"{count(usable, 'core')} may be used"
    if usable != physical:
        found += f", on {count(physical, 'physical core')}"
    if usable != all_threads:
        found += f", of {all_threads} that the machine has"
    if usable == 1:
        return Check("cores", "note", f"{found}: everything works, but no strategy can gain.")
    return Check("cores", "good", f"{found} ({machine.cpu_model()}).")


def gpus() -> Check:
    """Look at the GPUs, and whether torch can use them."""
    found = machine.gpus()
    if found:
        names = ", ".join(f"{gpu.name} with {in_binary_units(gpu.memory_bytes)}" for gpu in found)
        return Check("GPUs", "good", f"{count(len(found), 'GPU')}: {names}.")
    if machine.gpu_visible():
        torch = machine.versions()["torch"]
        return Check(
            "GPUs", "note", f"There is a GPU, but torch {torch} cannot use it: ranks use the CPU."
        )
    return Check("GPUs", "good", "No GPU: ranks use the CPU.")


def memory() -> Check:
    """Look at the memory that is free."""
    usable = machine.memory_bytes()
    free = min(psutil.virtual_memory().available, usable)
    found = f"{in_binary_units(free)} of {in_binary_units(usable)} are free"
    if free < LOW_MEMORY_BYTES:
        return Check("memory", "note", f"{found}: keep to few workers.")
    return Check("memory", "good", f"{found}.")


def shared_memory() -> Check:
    """Try what ranks share arrays through: anonymous memory that another process can open."""
    try:
        descriptor = memfd_create("workbench-doctor")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            again = os.open(f"/proc/{os.getpid()}/fd/{descriptor}", os.O_RDWR)
            try:
                with (
                    mmap.mmap(descriptor, mmap.PAGESIZE) as mine,
                    mmap.mmap(again, mmap.PAGESIZE) as theirs,
                ):
                    mine[:4] = b"good"
                    shared = theirs[:4] == b"good"
            finally:
                os.close(again)
        finally:
            os.close(descriptor)
    except (AttributeError, OSError) as error:
        return Check("shared memory", "wrong", f"Processes cannot share memory here: {error}.")
    if not shared:
        return Check("shared memory", "wrong", "What one process writes, another does not see.")
    return Check("shared memory", "good", "Processes can share anonymous memory.")


def loopback() -> Check:
    """Try to send a byte to ourselves, as scheduler and workers do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(SOCKET_LIMIT_S)
            with socket.create_connection(server.getsockname(), SOCKET_LIMIT_S) as ours:
                theirs, _ = server.accept()
                with theirs:
                    theirs.settimeout(SOCKET_LIMIT_S)
                    ours.sendall(b"1")
                    arrived = theirs.recv(1) == b"1"
    except OSError as error:
        return Check("loopback", "wrong", f"127.0.0.1 cannot be reached: {error}.")
    if not arrived:
        return Check("loopback", "wrong", "127.0.0.1 loses what is sent.")
    return Check("loopback", "good", "127.0.0.1 can be reached.")


def packages() -> Iterator[Check]:
    """Yield a check for each required package, against the versions that are allowed."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Check(
            "packages",
            "note",
            f"{DISTRIBUTION} is not installed, so nothing says what it requires.",
        )
        return
    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        allowed = f"{requirement.name} {requirement.specifier}".strip()
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "wrong", f"Not installed; needed is {allowed}.")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Check(requirement.name, "good", f"{version}.")
        else:
            yield Check(requirement.name, "wrong", f"{version} is installed; needed is {allowed}.")


def extensions() -> Iterator[Check]:
    """Yield a check for each JupyterLab extension that the panel needs."""
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return  # the check of the packages says so
    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    for extension, what in EXTENSIONS.items():
        if any((folder / extension / "package.json").is_file() for folder in folders):
            yield Check("JupyterLab", "good", f"It has {what}.")
        else:
            yield Check(
                "JupyterLab",
                "wrong",
                f"It lacks {what}; install it into the environment that JupyterLab runs in.",
            )
