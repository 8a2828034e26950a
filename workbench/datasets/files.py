"""Pieces of binary files: found in the client, which looks at sizes, and read on the workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import PlanError


@dataclass(frozen=True)
class Source:
    """A file and the size in bytes that it had when the client looked."""

    path: str
    size: int


def find(path: Path) -> Source:
    """Return the file at ``path`` with its size, without opening it.

    Raises
    ------
    PlanError
        if there is no such file.
    """
    if not path.is_file():
        raise PlanError(f"There is no file {path}.")
    return Source(str(path.resolve()), path.stat().st_size)


def read_range(sources: Sequence[Source], start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop`` of the files laid end to end; only those are read.

    Raises
    ------
    PlanError
        if a file that is needed is missing or has another size on this machine.
    """
    pieces = []
    for source, begin in zip(sources, _starts(sources), strict=True):
        first, last = max(start - begin, 0), min(stop - begin, source.size)
        if first >= last:
            continue
        found = find(Path(source.path))
        if found.size != source.size:
            raise PlanError(
                f"{source.path} has {found.size:,} bytes here but {source.size:,} where the data "
                f"was described; every worker needs the same file."
            )
        with open(source.path, "rb") as file:
            file.seek(first)
            pieces.append(file.read(last - first))
    return b"".join(pieces)


def _starts(sources: Iterable[Source]) -> list[int]:
    starts, total = [], 0
    for source in sources:
        starts.append(total)
        total += source.size
    return starts
