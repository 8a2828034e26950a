"""Files on this machine, and by address wherever fsspec reaches: s3, hdfs, https, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from workbench.errors import PlanError


@dataclass(frozen=True)
class Address:
    """A file or folder: an absolute path, or ``protocol://...`` with options for its driver."""

    text: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether it is a path on the machine that asks."""
        return "://" not in self.text

    @property
    def suffix(self) -> str:
        """The last ending of the name, in small letters: ``".npy"``."""
        return Path(self.text.rstrip("/")).suffix.lower()

    def join(self, name: str) -> Address:
        """Return the address of ``name`` in this folder."""
        return Address(f"{self.text.rstrip('/')}/{name}", self.options)

    def is_folder(self) -> bool:
        """Return whether it is a folder."""
        if self.is_local:
            return os.path.isdir(self.text)
        return bool(self._asked("isdir"))

    def names(self) -> list[str]:
        """Return paths of all files below this folder, relative to it, sorted."""
        if self.is_local:
            root = Path(self.text)
            found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
            return sorted(found)
        inner = self.filesystem()[1].rstrip("/") + "/"
        return sorted(str(p).partition(inner)[2] for p in self._asked("find"))

    def size(self) -> int:
        """Return the bytes of the file.

        Raises
        ------
        PlanError
            If there is no such file, or it cannot be read.
        """
        if not self.is_local:
            return int(self._asked("size") or 0)
        try:
            with open(self.text, "rb") as file:  # opening shows whether it can be read
                return os.fstat(file.fileno()).st_size
        except OSError as error:
            raise PlanError(_problem(self.text, error)) from error

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file to read bytes.

        Raises
        ------
        PlanError
            If there is no such file, or it cannot be read.
        """
        with ExitStack() as stack:
            try:
                if self.is_local:
                    file: IO[bytes] = stack.enter_context(open(self.text, "rb"))
                else:
                    filesystem, path = self.filesystem()
                    file = stack.enter_context(filesystem.open(path, "rb"))
            except OSError as error:
                raise PlanError(_problem(self.text, error)) from error
            yield file

    def _asked(self, question: str) -> Any:
        filesystem, path = self.filesystem()
        try:
            return getattr(filesystem, question)(path)
        except OSError as error:
            raise PlanError(_problem(self.text, error)) from error

    def filesystem(self) -> tuple[Any, str]:
        """Return fsspec's file system of an address that is not local, and the path there.

        Raises
        ------
        PlanError
            If there is no driver for it.
        """
        from fsspec.core import url_to_fs

        try:
            filesystem, path = url_to_fs(self.text, **dict(self.options))
            return filesystem, str(path)
        except ImportError as error:
            protocol = self.text.partition("://")[0]
            raise PlanError(
                f"{self.text} needs the driver of {protocol}:// for fsspec, which is not "
                f"installed: {error}."
            ) from error
        except ValueError as error:
            raise PlanError(f"{self.text} cannot be read: {error}.") from error


def parse(given: str | Path, options: dict[str, Any] | None = None) -> Address:
    """Return the address that a user gave; paths become absolute.

    Raises
    ------
    PlanError
        If a path does not exist; names the nearest folder that does.
    """
    text = os.fspath(given).removeprefix("file://")
    if "://" in text:
        return Address(text, tuple(sorted((options or {}).items())))
    path = Path(text).expanduser().absolute()
    if not path.exists():
        there = next(parent for parent in path.parents if parent.exists())
        raise PlanError(f"There is no {path}; the last part of it that exists is {there}.")
    return Address(str(path))


def needed(package: str, kind: str) -> Any:
    """Return an optional package that reads ``kind``.

    Raises
    ------
    PlanError
        If it is not installed, with the command that does it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise PlanError(
            f"Reading {kind} needs the package {name}: pip install 'dask-workbench[formats]', or "
            f"pip install {name}."
        ) from error


def _problem(text: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"There is no file {text} on this machine; every worker needs the same file."
    return f"{text} cannot be read: {error.strerror or error}."
