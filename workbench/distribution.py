"""A table of which worker has which chunk, how even that is, and what moves when workers change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import isfinite, isnan, prod
from typing import Any

import numpy as np

from workbench.errors import PlanError
from workbench.hashing import SCHEMES, Owners, Question, resettle
from workbench.plan import in_binary_units


@dataclass(frozen=True)
class Move:
    """What a change of workers moves.

    Attributes
    ----------
    chunks, bytes:
        What changes its worker.
    share:
        ``bytes`` of all bytes.
    fair:
        The share that moves if every worker has just its part: what newcomers are to have, what
        those who leave had, or what others gain that count more than before.
    keys:
        Which chunks, with their worker before and after.
    """

    chunks: int
    bytes: int
    share: float
    fair: float
    keys: Mapping[str, tuple[str, str]]

    def __str__(self) -> str:
        """Say it in one sentence."""
        return (
            f"{self.chunks:,} chunks move, {in_binary_units(self.bytes)} or {self.share:.1%} of "
            f"all bytes; a fair part is {self.fair:.1%}."
        )


@dataclass(frozen=True, eq=False)
class Distribution:
    """Which worker has which chunk; made by :func:`placement`.

    Attributes
    ----------
    keys, sizes:
        Names of the chunks, and their bytes.
    capacities:
        How much each worker counts, by name.
    owners:
        For each key the number of its worker.
    """

    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    capacities: Mapping[str, float]
    scheme: str
    owners: Owners

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers."""
        return tuple(self.capacities)

    @property
    def owner(self) -> dict[str, str]:
        """The worker of each key."""
        names = self.workers
        return {key: names[n] for key, n in zip(self.keys, self.owners.tolist(), strict=True)}

    @property
    def chunks(self) -> dict[str, int]:
        """Number of chunks on each worker."""
        counts = np.bincount(self.owners, minlength=len(self.workers))
        return dict(zip(self.workers, counts.tolist(), strict=True))

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes on each worker."""
        sums = np.bincount(self.owners, weights=self.sizes, minlength=len(self.workers))
        return {name: int(n) for name, n in zip(self.workers, sums, strict=True)}

    @property
    def balance(self) -> float:
        """Bytes of the fullest worker over what it is to have by its capacity: max/mean."""
        whole, capacity = sum(self.sizes) or 1, sum(self.capacities.values())
        return max(n / whole * capacity / self.capacities[name] for name, n in self.bytes.items())

    def with_workers(self, workers: Any) -> Distribution:
        """Return where the chunks go when ``workers`` are all that there are.

        Under ``"rendezvous"`` chunks stay where they are as far as the bound on the loads lets
        them, so this depends on where they were; the other schemes place all anew.

        Raises
        ------
        PlanError
            If there are no workers.
        """
        capacities = _capacities(workers)
        question = _question(self.keys, self.sizes, capacities)
        if self.scheme != "rendezvous":
            owners = SCHEMES[self.scheme](question)
        else:
            number = {name: n for n, name in enumerate(capacities)}
            renumbered = np.array([number.get(name, -1) for name in self.workers], np.int64)
            owners = resettle(question, renumbered[self.owners])
        return Distribution(self.keys, self.sizes, capacities, self.scheme, owners)

    def moved(self, after: Distribution) -> Move:
        """Return what changes its worker from this table to ``after``, a table of the same keys."""
        theirs = after.owner
        keys = {
            key: (mine, theirs[key])
            for key, mine in self.owner.items()
            if key in theirs and theirs[key] != mine
        }
        size = dict(zip(self.keys, self.sizes, strict=True))
        moved, whole = sum(size[key] for key in keys), sum(self.sizes) or 1
        ours, new = self.capacities, after.capacities
        parts = {name: part / sum(new.values()) for name, part in new.items()}
        left = sum(n for name, n in self.bytes.items() if name not in new)
        if ours.keys() == new.keys():  # some count more than before, and others less
            gained = (part - ours[name] / sum(ours.values()) for name, part in parts.items())
            fair = sum(more for more in gained if more > 0)
        else:
            joined = sum(part for name, part in parts.items() if name not in ours)
            fair = max(joined, left / whole)
        return Move(len(keys), moved, moved / whole, fair, keys)

    def __str__(self) -> str:
        """Return the table."""
        whole, capacity = sum(self.sizes) or 1, sum(self.capacities.values())
        rows = [("worker", "capacity", "chunks", "bytes", "of its mean")]
        held, chunks = self.bytes, self.chunks
        for name, part in self.capacities.items():
            mean = whole * part / capacity
            rows.append(
                (
                    name,
                    f"{part / capacity:.1%}",
                    f"{chunks[name]:,}",
                    in_binary_units(held[name]),
                    f"{held[name] / mean:.2f}",
                )
            )
        title = (
            f"{len(self.keys):,} chunks, {in_binary_units(sum(self.sizes))}, on "
            f"{len(self.workers)} workers by {self.scheme}: max/mean {self.balance:.2f}"
        )
        return "\n".join([title, *_columns(rows)])


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every scheme on the same chunks and workers; ``rows`` hold the numbers."""

    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        """Return the table."""
        lines = [("scheme", "max/mean", "moves when one joins", "when one leaves", "fair parts")]
        for row in self.rows:
            lines.append(
                (
                    row["scheme"],
                    f"{row['balance']:.2f}",
                    f"{row['joined'].share:.1%}",
                    f"{row['left'].share:.1%}",
                    f"{row['joined'].fair:.1%} / {row['left'].fair:.1%}",
                )
            )
        return "\n".join(_columns(lines))


def placement(chunks: Any, workers: Any, scheme: str = "rendezvous") -> Distribution:
    """Return which worker has which chunk.

    Parameters
    ----------
    chunks:
        A dask array, several by name, bytes by key, or keys of equal size. The key of a chunk is
        the name of its array and its index, as in ``"x/3/0"``.
    workers:
        Their number, their names, or their capacities by name (memory or speed, in any unit).
    scheme:
        ``"rendezvous"``: weighted rendezvous hashing with bounded loads, see
        :mod:`workbench.hashing`. For comparison ``"ring"``, ``"modulo"`` and ``"round robin"``.

    Raises
    ------
    PlanError
        If there is no such scheme, no worker, no chunk, or chunks of unknown size.
    """
    check_scheme(scheme)
    sizes = _sizes(chunks)
    capacities = _capacities(workers)
    question = _question(tuple(sizes), tuple(sizes.values()), capacities)
    owners = SCHEMES[scheme](question)
    return Distribution(tuple(sizes), tuple(sizes.values()), capacities, scheme, owners)


def compare_schemes(chunks: Any, workers: Any) -> Comparison:
    """Place ``chunks`` by every scheme, and have one worker join and the last one leave.

    Raises
    ------
    PlanError
        As :func:`placement`.
    """
    capacities = _capacities(workers)
    mean = sum(capacities.values()) / len(capacities)
    more = {**capacities, _new_name(capacities): mean}
    fewer = dict(list(capacities.items())[:-1])
    rows = []
    for scheme in SCHEMES:
        table = placement(chunks, capacities, scheme)
        left = table.with_workers(fewer) if fewer else table
        rows.append(
            {
                "scheme": scheme,
                "balance": table.balance,
                "joined": table.moved(table.with_workers(more)),
                "left": table.moved(left),
            }
        )
    return Comparison(tuple(rows))


def check_scheme(scheme: Any) -> None:
    """Raise PlanError, with the nearest, if there is no such scheme."""
    if scheme not in SCHEMES:
        near = get_close_matches(str(scheme), SCHEMES, 1, 0.3)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        raise PlanError(f"There is no scheme {scheme!r}; {hint} {', '.join(SCHEMES)}.")


def chunk_bytes(array: Any, what: str) -> dict[tuple[int, ...], int]:
    """Return the bytes of each chunk of a dask array, by its index.

    Raises
    ------
    PlanError
        If chunks have an unknown size, or hold Python objects.
    """
    if array.dtype.hasobject:
        raise PlanError(
            f"{what} has chunks of {array.dtype} and so of unknown size; convert it to numbers, "
            f"as in {what}.astype('float32')."
        )
    if any(isnan(size) for sizes in array.chunks for size in sizes):
        raise PlanError(
            f"{what} has chunks of unknown size; call {what}.compute_chunk_sizes() first."
        )
    return {
        index: prod(sizes[i] for sizes, i in zip(array.chunks, index, strict=True))
        * array.dtype.itemsize
        for index in product(*map(range, array.numblocks))
    }


def _sizes(chunks: Any) -> dict[str, int]:
    if hasattr(chunks, "numblocks"):
        chunks = {"x": chunks}
    if isinstance(chunks, Mapping):
        found = {}
        for name, item in chunks.items():
            if hasattr(item, "numblocks"):
                for index, size in chunk_bytes(item, name).items():
                    found["/".join(map(str, (name, *index)))] = size
            else:
                found[str(name)] = _size(name, item)
    elif isinstance(chunks, Iterable) and not isinstance(chunks, str | bytes):
        found = {str(key): 1 for key in chunks}
    else:
        raise PlanError(
            f"Chunks to place are a dask array, several by name, bytes by key, or keys; got "
            f"{chunks!r}."
        )
    if not found:
        raise PlanError("There are no chunks to place; give at least one.")
    return found


def _size(key: Any, size: Any) -> int:
    number = isinstance(size, int | float | np.number) and isfinite(size) and size >= 0
    if not number:
        raise PlanError(f"Chunk {key!r} has {size!r} bytes; give a whole number of 0 or more.")
    return int(size)


def _capacities(workers: Any) -> dict[str, float]:
    if isinstance(workers, Mapping):
        found = {str(name): capacity for name, capacity in workers.items()}
    elif isinstance(workers, int) and not isinstance(workers, bool):
        found = {str(n): 1.0 for n in range(workers)}
    elif isinstance(workers, Iterable) and not isinstance(workers, str | bytes):
        found = {str(name): 1.0 for name in workers}
    else:
        raise PlanError(f"Workers are a number, names, or capacities by name; got {workers!r}.")
    if not found:
        raise PlanError("There are no workers to place chunks on; give at least one.")
    for name, capacity in found.items():
        number = isinstance(capacity, int | float | np.number) and not isinstance(capacity, bool)
        if not number or not isfinite(capacity) or capacity <= 0:
            raise PlanError(f"Worker {name!r} has the capacity {capacity!r}; give one above 0.")
    return {name: float(capacity) for name, capacity in found.items()}


def _question(
    keys: tuple[str, ...], sizes: tuple[int, ...], capacities: Mapping[str, float]
) -> Question:
    parts = np.array(list(capacities.values()))
    return Question(keys, np.array(sizes, float), tuple(capacities), parts / parts.sum())


def _new_name(names: Iterable[str]) -> str:
    taken = set(names)
    return next(name for n in range(len(taken) + 1) if (name := str(len(taken) + n)) not in taken)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
