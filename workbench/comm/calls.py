"""What a rank asked for, as numbers that other ranks can compare and put into words."""

from __future__ import annotations

from functools import cache
from zlib import crc32

import torch

OPERATIONS = (
    "start", "barrier", "allocate", "all_reduce", "reduce_scatter", "all_gather", "broadcast",
    "message", "split", "common", "lend",
)  # fmt: skip
REDUCTIONS = ("", "sum", "max", "min")
DTYPES = (
    None,
    *sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str),
)  # fmt: skip

PLACE_BITS = 40
"""A place in allocated memory: which allocation, counted from 1, then this many bits of offset."""

Call = tuple[int, int, int]
"""Code of operation, reduction and dtype; number of elements; root, place or name, 0 if none."""


@cache
def code(operation: str, reduction: str = "", dtype: torch.dtype | None = None) -> int:
    """Return the number that stands for these three; never 0, which is memory not yet written."""
    return (
        (OPERATIONS.index(operation) + 1) * 1_000_000
        + REDUCTIONS.index(reduction) * 1_000
        + DTYPES.index(dtype)
    )


def message(name: str | None, dtype: torch.dtype, numel: int) -> Call:
    """Return what labels a message: both ends must give the same."""
    return code("message", "", dtype), numel, crc32((name or "").encode())


def in_words(call: Call) -> str:
    """Return a call in words: "all_reduce (sum) of 10 float32"."""
    number, numel, place = call
    operation, rest = divmod(number, 1_000_000)
    reduction, dtype = divmod(rest, 1_000)
    if not 0 < operation <= len(OPERATIONS) or reduction > 3 or dtype >= len(DTYPES):
        return f"something unknown ({number})"
    text = OPERATIONS[operation - 1]
    if reduction:
        text += f" ({REDUCTIONS[reduction]})"
    if text == "start":
        return f"start of {numel} ranks"
    if text == "broadcast":
        text += f" from rank {place}"
    elif place and text != "message":
        text += f" in allocated memory ({place >> PLACE_BITS}, byte {place % (1 << PLACE_BITS)})"
    if text == "lend":
        text += f" of {numel} bytes"
    if DTYPES[dtype] is not None:
        items = "" if text in ("all_gather", "split") else f"{numel} "
        text += f" of {items}{str(DTYPES[dtype]).removeprefix('torch.')}"
    if OPERATIONS[operation - 1] == "message":
        text += f" named #{place:08x}" if place else " without a name"
    return text
