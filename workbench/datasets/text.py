"""The source code of Python's standard library, as bytes of text."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workbench.datasets.dataset import Dataset, lazy, split_sizes
from workbench.datasets.files import Source, find, read_range
from workbench.errors import PlanError

SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "site-packages", "__pycache__"})
LARGEST_FILE = 200_000
"""Bytes; larger files of the library are tables, not text."""


def text(length: int = 128, samples: int = 4096, test_share: float = 0.1, seed: int = 0) -> Dataset:
    """Return pieces of text and for every byte the one after it.

    Both arrays are (N, length), int64 0..255. The files are put in an order drawn from the seed and
    laid end to end. The test text comes first in that order and the training text after it; within
    a chunk the pieces are shuffled.

    Raises
    ------
    PlanError
        if the numbers leave nothing for training or testing, or ask for more than the library has.
    """
    if length < 1 or samples < 2:
        raise PlanError(
            f"The text needs a length of at least 1 and 2 samples; got {length} and {samples}."
        )
    train, test = split_sizes(samples, test_share)
    sources = enough(library_files(), samples * length + 1, seed)
    facts = {"length": length, "seed": seed, "sources": sources}
    held_out = {**facts, "first": 0}
    facts["first"] = test
    return Dataset(
        name="text",
        x=lazy(text_bytes, train, (length,), "int64", **facts, shift=0),
        y=lazy(text_bytes, train, (length,), "int64", **facts, shift=1),
        test_x=lazy(text_bytes, test, (length,), "int64", **held_out, shift=0),
        test_y=lazy(text_bytes, test, (length,), "int64", **held_out, shift=1),
        classes=256,
        description=f"{samples:,} pieces of {length} bytes of Python's standard library",
    )


def library_files() -> list[Source]:
    """Return the library's Python files in the order of their names, without opening them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED_FOLDERS]  # so it looks into fewer
        found += [find(Path(folder, name)) for name in names if name.endswith(".py")]
    chosen = (source for source in found if 0 < source.size <= LARGEST_FILE)
    return sorted(chosen, key=lambda source: source.path)


def enough(sources: Sequence[Source], wanted: int, seed: int) -> tuple[Source, ...]:
    """Return files in the seed's order, as many as are needed for ``wanted`` bytes.

    Raises
    ------
    PlanError
        if all of them together have fewer.
    """
    chosen: list[Source] = []
    total = 0
    for index in np.random.default_rng(seed).permutation(len(sources)):
        if total >= wanted:
            break
        chosen.append(sources[index])
        total += sources[index].size
    if total < wanted:
        raise PlanError(
            f"{wanted:,} bytes of text are wanted and the standard library has {total:,}; "
            f"ask for fewer or shorter samples."
        )
    return tuple(chosen)


def text_bytes(
    start: int, stop: int, length: int, seed: int, sources: Sequence[Source], first: int, shift: int
) -> np.ndarray:
    """Return pieces (stop - start, length) of the files laid end to end, ``shift`` bytes later."""
    begin, end = (first + start) * length + shift, (first + stop) * length + shift
    found = np.frombuffer(read_range(sources, begin, end), np.uint8).reshape(-1, length)
    order = np.random.default_rng([seed, first, start]).permutation(stop - start)
    return found[order].astype(np.int64)
