"""A checkpoint comes into being: in a folder beside its place, which then takes the place at once.

Until the last moment what was there before is untouched, and afterwards what is there is complete:
everything was on the disk before the names were changed. A folder that is being written is locked,
so that those left by a process that was killed are told apart and removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.checkpoint import manifest
from workbench.checkpoint.manifest import NAME, PART, SEAL, Manifest
from workbench.checkpoint.parts import PROBE, check, sync
from workbench.comm import kernel
from workbench.errors import PlanError, RunError
from workbench.plan import in_binary_units

_PERIODIC = re.compile(r"step-\d{8,}")
_SAVING, _OLD = "saving", "old"
_REMOVALS = 5


def target_of(path: object, what: str) -> Path:
    """Return the absolute path, with its links followed, that a user means.

    Raises
    ------
    PlanError
        If it is no path.
    """
    try:
        text = os.fspath(path)  # type: ignore[call-overload]
        if not text or isinstance(text, bytes):
            raise TypeError("an empty path" if not text else "bytes")
        return Path(text).expanduser().resolve()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise PlanError(f"{what} takes a path, such as 'my-run'; got {path!r} ({error}).") from None


def check_free(target: Path) -> None:
    """Raise PlanError if something lies at ``target`` that is no checkpoint of ours."""
    if not target.exists():
        return
    if not target.is_dir():
        raise PlanError(f"{target} is a file, and a checkpoint is a folder; give another path.")
    strange = [entry.name for entry in target.iterdir() if not _is_ours(entry.name)]
    if strange:
        raise PlanError(
            f"{target} holds {strange[0]!r}, which is no part of a checkpoint, and is left as it "
            f"is; give a path of its own, such as {str(target / 'checkpoint')!r}."
        )


def check_writable(target: Path) -> None:
    """Raise PlanError if nothing can be made where ``target`` is to be."""
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "is no folder" if not parent.is_dir() else "may not be written to"
        raise PlanError(f"{target} cannot be written ({parent} {why}); give another path.")


@contextmanager
def beside(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Give a new folder beside ``target``; it is removed, unless it has become that.

    Raises
    ------
    PlanError
        If it cannot be made, or the disk has less room than ``needed_bytes``.
    """
    made = target.with_name(f".{target.name}.{_SAVING}-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(target, complete=False)
        free_bytes = shutil.disk_usage(target.parent).free
        if free_bytes < needed_bytes:
            raise PlanError(
                f"A checkpoint of {in_binary_units(needed_bytes)} does not fit on the disk of "
                f"{target.parent}, which has {in_binary_units(free_bytes)} left; make room, or "
                "give a path on another."
            )
        made.mkdir()
        lock = os.open(made, os.O_RDONLY)
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        with suppress(OSError):  # a file system without locks: nothing is told apart, all is kept
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made
    finally:
        os.close(lock)
        _remove(made)


def probe(folder: Path) -> str:
    """Leave a token in ``folder`` for workers to find, and return it."""
    token = secrets.token_hex(16)
    (folder / PROBE).write_text(token)
    return token


def seal(folder: Path, content: Manifest, made_by: dict[str, str]) -> None:
    """Write the manifest of a folder that has all its parts, and have all of it on the disk."""
    with suppress(FileNotFoundError):
        (folder / PROBE).unlink()
    data, seal_data = manifest.write(content, made_by)
    for name, each in ((NAME, data), (SEAL, seal_data)):
        with open(folder / name, "wb") as file:
            file.write(each)
            file.flush()
            os.fsync(file.fileno())
    sync(str(folder))


def commit(folder: Path, target: Path) -> None:
    """Have the complete ``folder`` take the place of ``target``; what was there is removed.

    One rename, or one exchange of names. Where the file system cannot exchange names, the old one
    is put aside first; if that is all that can be done, it stays beside its place and is offered.
    """
    if not target.exists():
        os.rename(folder, target)
    else:
        try:
            kernel.exchange(str(folder), str(target))
        except OSError:
            old = target.with_name(f".{target.name}.{_OLD}-{secrets.token_hex(4)}")
            os.rename(target, old)
            try:
                os.rename(folder, target)
            except BaseException:
                os.rename(old, target)
                raise
    sync(str(target.parent))
    _remove_left(target, complete=True)


def unwritable(target: Path, error: OSError) -> PlanError:
    """Return what to say when nothing can be made at ``target``."""
    return PlanError(
        f"{target} cannot be written ({error.strerror or error}); give a path in a folder that can."
    )


def no_room(target: Path, needed_bytes: int, error: BaseException) -> RunError:
    """Return what to say when writing has failed."""
    reason = getattr(error, "strerror", None) or str(error)
    free_bytes = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
    before = "what was there before is untouched" if target.exists() else "nothing is left of it"
    return RunError(
        f"The checkpoint {target} could not be written: {reason}; it needs "
        f"{in_binary_units(needed_bytes)}, the disk has {in_binary_units(free_bytes)} left, and "
        f"{before}."
    )


def is_checkpoint(place: Path) -> bool:
    """Return whether ``place`` claims to be a checkpoint."""
    return (place / NAME).exists()


def name_of(step: int) -> str:
    """Return the name of a checkpoint in a folder of several."""
    return f"step-{step:08}"


def valid_in(place: Path) -> list[Path]:
    """Return the checkpoints in a folder of several, the newest first; complete by their sizes."""
    found = []
    with suppress(OSError):
        for entry in place.iterdir():
            if _PERIODIC.fullmatch(entry.name):
                with suppress(PlanError, OSError):
                    manifest.read(entry)
                    found.append(((entry / NAME).stat().st_mtime_ns, entry.name, entry))
    return [entry for _, _, entry in sorted(found, reverse=True)]


def offered(target: Path) -> str:
    """Return a sentence with the newest valid checkpoint beside ``target``; empty if none is."""
    found = []
    with suppress(OSError):
        for entry in target.parent.iterdir():
            if entry != target and (entry / NAME).is_file():
                found.append(((entry / NAME).stat().st_mtime, entry))
    for _, entry in sorted(found, reverse=True):
        with suppress(PlanError, OSError):
            content = manifest.read(entry)
            for name, file in content.files.items():
                check(str(entry / name), file)
            return f" The newest valid one beside it is {str(entry)!r}, of step {content.step}."
    return ""


def _is_ours(name: str) -> bool:
    return name in (NAME, SEAL, PROBE) or PART.fullmatch(name) is not None


def _remove_left(target: Path, *, complete: bool) -> None:
    """Remove what processes have left that were killed while they saved to ``target``.

    What they had completed is removed only when there is something newer.
    """
    prefixes = tuple(f".{target.name}.{kind}-" for kind in (_SAVING, _OLD))
    for entry in target.parent.iterdir():
        if not entry.name.startswith(prefixes) or ((entry / SEAL).exists() and not complete):
            continue
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # somebody writes it
        else:
            _remove(entry)
        finally:
            os.close(descriptor)


def _remove(folder: Path) -> None:
    for _ in range(_REMOVALS):  # a worker may just be making a file in it
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
