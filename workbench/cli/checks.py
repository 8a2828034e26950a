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
from workbench.comm.kernel import memfd_create
from workbench.plan import in_binary_units
from workbench.ui import texts
from workbench.ui.language import known, text

State = Literal["good", "note", "wrong"]

DISTRIBUTION = "dask-workbench"
ARCHITECTURES = ("x86_64", "aarch64")
LOW_MEMORY_BYTES = 2 * 2**30
"""Less free memory than this is worth a note: a rank with torch takes about 300 MiB."""

SOCKET_LIMIT_S = 2.0
EXTENSIONS = {
    "@bokeh/jupyter_bokeh": "doctor.figures",
    "@jupyter-widgets/jupyterlab-manager": "doctor.controls",
}
"""JupyterLab extensions that the panel needs, by the folder they install: texts of what they do."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: ``state`` is "good", "note" (works, but know it) or "wrong"."""

    name: str
    state: State
    sentence: str

    @property
    def label(self) -> str:
        """The name as people read it; packages have no other."""
        key = f"doctor.name.{self.name}"
        return text(key) if known(key) else self.name


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
        return Check(
            "system", "good", text("doctor.system", here=here, version=platform.python_version())
        )
    return Check("system", "wrong", text("doctor.system.wrong", here=here))


def cores() -> Check:
    """Look at the cores that may be used."""
    usable, physical, all_threads = machine.cores(), machine.physical_cores(), os.cpu_count()
    found = text("doctor.cores", cores=texts.count(usable, "core"))
    if usable != physical:
        found += text("doctor.cores.physical", cores=texts.count(physical, "physical core"))
    if usable != all_threads:
        found += text("doctor.cores.of", all=all_threads)
    if usable == 1:
        return Check("cores", "note", text("doctor.cores.one", found=found))
    return Check("cores", "good", f"{found} ({machine.cpu_model()}).")


def gpus() -> Check:
    """Look at the GPUs, and whether torch can use them."""
    found = machine.gpus()
    if found:
        names = ", ".join(f"{gpu.name}, {in_binary_units(gpu.memory_bytes)}" for gpu in found)
        told = text("doctor.gpus", gpus=texts.count(len(found), "GPU"), names=names)
        return Check("GPUs", "good", told)
    if machine.gpu_visible():
        torch = machine.versions()["torch"]
        return Check("GPUs", "note", text("doctor.gpus.unusable", torch=torch))
    return Check("GPUs", "good", text("doctor.gpus.none"))


def memory() -> Check:
    """Look at the memory that is free."""
    usable = machine.memory_bytes()
    free = min(psutil.virtual_memory().available, usable)
    found = {"free": in_binary_units(free), "all": in_binary_units(usable)}
    if free < LOW_MEMORY_BYTES:
        return Check("memory", "note", text("doctor.memory.low", **found))
    return Check("memory", "good", text("doctor.memory", **found))


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
        return Check("shared memory", "wrong", text("doctor.shared.refused", error=error))
    if not shared:
        return Check("shared memory", "wrong", text("doctor.shared.unseen"))
    return Check("shared memory", "good", text("doctor.shared"))


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
        return Check("loopback", "wrong", text("doctor.loopback.refused", error=error))
    if not arrived:
        return Check("loopback", "wrong", text("doctor.loopback.loses"))
    return Check("loopback", "good", text("doctor.loopback"))


def packages() -> Iterator[Check]:
    """Yield a check for each required package, against the versions that are allowed."""
    from packaging.requirements import Requirement

    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "note", text("doctor.packages.unknown", name=DISTRIBUTION))
        return
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        allowed = f"{requirement.name} {requirement.specifier}".strip()
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "wrong", text("doctor.package.missing", allowed=allowed))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Check(requirement.name, "good", f"{version}.")
        else:
            yield Check(
                requirement.name,
                "wrong",
                text("doctor.package.wrong", version=version, allowed=allowed),
            )


def extensions() -> Iterator[Check]:
    """Yield a check for each JupyterLab extension that the panel needs."""
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return  # the check of the packages says so
    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    for extension, what in EXTENSIONS.items():
        if any((folder / extension / "package.json").is_file() for folder in folders):
            yield Check("JupyterLab", "good", text("doctor.extension", what=text(what)))
        else:
            yield Check("JupyterLab", "wrong", text("doctor.extension.missing", what=text(what)))
