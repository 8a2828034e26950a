"""What a checkpoint says of itself: ``manifest.json``, read without trust.

Pure. The folder of a checkpoint holds ``manifest.json``, ``manifest.json.sha256`` (a line for
``sha256sum -c``) and the files of safetensors that the manifest lists with their sizes and hashes.
Nothing in it is code, and nothing in it names a file outside of the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoint.pieces import Piece, shape_of, whole
from workbench.errors import PlanError

FORMAT = "dask-workbench checkpoint"
VERSION = 1
NAME = "manifest.json"
SEAL = "manifest.json.sha256"
MOST_BYTES = 1 << 28
PART = re.compile(r"part-\d{5}\.safetensors")
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = frozenset(("bool", *_WHOLE, "float16", "float32", "float64", "complex64"))


class Damaged(PlanError):
    """No checkpoint that can be loaded; another beside it may be one."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a checkpoint: how long it must be, and its SHA-256 in hexadecimal."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An array of a checkpoint: shape and dtype when whole, and by file which piece that has."""

    shape: tuple[int, ...]
    dtype: str
    parts: Mapping[str, Piece]


@dataclass(frozen=True)
class Manifest:
    """All that a checkpoint says of itself.

    ``workload`` describes what was computed, see :mod:`workbench.checkpoint.fitting`. ``step`` is
    the number of finished steps, those of earlier runs included. ``arrays`` are by kept name, such
    as ``"parameter:0.weight"``.
    """

    workload: Mapping[str, Any]
    strategy: str
    options: Mapping[str, str]
    accumulate: int
    threads: int
    step: int
    files: Mapping[str, File]
    arrays: Mapping[str, Stored]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(file.size_bytes for file in self.files.values())


def write(manifest: Manifest, made_by: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Return the bytes of ``manifest.json`` and of the seal beside it."""
    files = {
        name: {"bytes": file.size_bytes, "sha256": file.sha256}
        for name, file in manifest.files.items()
    }
    arrays = {
        name: {
            "shape": stored.shape,
            "dtype": stored.dtype,
            "parts": [{"file": file, "slices": piece} for file, piece in stored.parts.items()],
        }
        for name, stored in manifest.arrays.items()
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": dict(made_by),
        "workload": dict(manifest.workload),
        "strategy": manifest.strategy,
        "options": dict(manifest.options),
        "accumulate": manifest.accumulate,
        "threads": manifest.threads,
        "step": manifest.step,
    }
    head = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    lists = [f'"files": {_lines(files)}', f'"arrays": {_lines(arrays)}']
    data = ("{\n" + ",\n".join(head + lists) + "\n}\n").encode()
    return data, seal_of(data)


def _lines(content: Mapping[str, Any]) -> str:
    """Return JSON with a line for each entry, for people."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def seal_of(data: bytes) -> bytes:
    """Return what the seal of a manifest says."""
    return f"{hashlib.sha256(data).hexdigest()}  {NAME}\n".encode()


def read(folder: Path) -> Manifest:
    """Return the manifest of the checkpoint in ``folder``; its parts are there and of their size.

    Raises
    ------
    Damaged
        If there is no checkpoint, or it is foreign, of a newer version, damaged or not complete.
    """
    if not folder.exists():
        raise Damaged(f"There is no checkpoint at {folder}: nothing is there.")
    if not folder.is_dir():
        raise Damaged(
            f"{folder} is no checkpoint: those are folders, and plain weights end in .safetensors, "
            ".pt or .pth."
        )
    try:
        if (folder / NAME).stat().st_size > MOST_BYTES:
            raise Damaged(f"{folder} is no checkpoint: its {NAME} is larger than 256 MiB.")
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        hint = (
            "; it is one of torch.distributed.checkpoint, which holds pickled code: load it with "
            "torch, where you trust it, and give its state dict as a .safetensors file"
            if (folder / ".metadata").exists()
            else ""
        )
        raise Damaged(f"{folder} is no checkpoint: it has no {NAME}{hint}.") from None
    except OSError as error:
        raise Damaged(f"{folder / NAME} cannot be read ({error.strerror}).") from error
    try:
        content = json.loads(data)
        ours = isinstance(content, dict) and content.get("format") == FORMAT
        version = content["version"] if ours else None
    except (ValueError, RecursionError, KeyError):
        ours, version = False, None
    try:
        sealed = (folder / SEAL).read_bytes() == seal_of(data)
    except OSError:
        sealed = False
    if ours and isinstance(version, int) and version > VERSION:
        raise Damaged(
            f"{folder} is of version {version}, and this workbench reads versions up to {VERSION}; "
            "use the workbench that has made it, or a newer one."
        )
    if not sealed:
        kind = "is damaged" if ours or (folder / SEAL).exists() else "is no checkpoint"
        raise Damaged(f"{folder} {kind}: {NAME} does not have the SHA-256 that {SEAL} says.")
    if not ours:
        raise Damaged(f"{folder} is no checkpoint: the format of its {NAME} is another.")
    try:
        manifest = _parsed(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder} is no checkpoint: its {NAME} does not make sense: {error}.") from (
            error
        )
    for name, file in manifest.files.items():
        _check_file(folder / name, file)
    return manifest


def _check_file(path: Path, file: File) -> None:
    """Raise Damaged if a part is not there as it should be, its content aside."""
    if path.is_symlink():
        raise Damaged(f"{path} is a link, and a checkpoint holds its parts itself.")
    if not path.is_file():
        raise Damaged(f"The checkpoint is not complete: {path} is missing.")
    there = path.stat().st_size
    if there != file.size_bytes:
        raise Damaged(
            f"The checkpoint is damaged: {path} has {there:,} bytes and should have "
            f"{file.size_bytes:,}."
        )


def _parsed(content: dict[str, Any]) -> Manifest:
    files = {}
    for name, given in content["files"].items():
        if not PART.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a part")
        if not re.fullmatch("[0-9a-f]{64}", given["sha256"]):
            raise ValueError(f"{name} has no SHA-256")
        files[name] = File(_count(given["bytes"]), given["sha256"])
    arrays = {}
    for name, given in content["arrays"].items():
        if given["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the dtype {given['dtype']!r}")
        shape = tuple(_count(length) for length in given["shape"])
        parts = {part["file"]: _piece(part["slices"], shape) for part in given["parts"]}
        if not parts.keys() <= files.keys():
            raise ValueError(f"{name} lies in a file that is not listed")
        entries = sum(_numel(shape_of(piece)) for piece in parts.values())
        if entries != _numel(shape):
            raise ValueError(f"the parts of {name} are not the whole of it")
        arrays[str(name)] = Stored(shape, given["dtype"], parts)
    options = {str(key): str(value) for key, value in content["options"].items()}
    if not options.keys().isdisjoint(("work", "strategy", "accumulate")):
        raise ValueError("its options are no options of a strategy")
    return Manifest(
        workload=dict(content["workload"]),
        strategy=str(content["strategy"]),
        options=options,
        accumulate=_count(content["accumulate"]),
        threads=_count(content["threads"]),
        step=_count(content["step"]),
        files=files,
        arrays=arrays,
    )


def _piece(given: Any, shape: tuple[int, ...]) -> Piece:
    piece = tuple(tuple((_count(a), _count(b)) for a, b in runs) for runs in given)
    if len(piece) != len(shape):
        raise ValueError("a part has another number of dims than its array")
    for runs, ((_, length),) in zip(piece, whole(shape), strict=True):
        edges = [edge for run in runs for edge in run]
        if edges != sorted(edges) or edges[-1] > length:
            raise ValueError("a part has slices that are not in order, or beyond its array")
    return piece


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
