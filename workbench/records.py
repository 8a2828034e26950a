"""The folders of runs and comparisons: what was asked, a record per step, and how it ended."""

from __future__ import annotations

import json
import math
import os
import socket
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TextIO
from weakref import WeakValueDictionary

import psutil

from workbench.errors import PlanError
from workbench.measured import Row, SpanRow, join
from workbench.speedup import Entry

DEFAULT_FOLDER = "workbench-runs"
RUN, STEPS, SPANS, COMPARISON = "run.json", "steps.jsonl", "spans.jsonl", "comparison.json"
LIVE_SPANS = 2_000
"""Spans per rank that are written while a run goes on: enough to see a step of one that broke."""

MOST_SPANS = 20_000
"""Spans per rank that are written when it has ended: the newest."""

MOST_BYTES = 2**26
"""Of a file that are read in one look."""

SPAN_KEYS = ("rank", "step", "kind", "name", "start_s", "stop_s", "sent_bytes")


_DRIVEN: WeakValueDictionary[Path, Any] = WeakValueDictionary()


def drive(folder: Path, what: Any) -> None:
    """Note that this process drives the run or comparison of a folder."""
    _DRIVEN[folder.resolve()] = what


def driven(folder: Path | None) -> Any:
    """Return the run or comparison of a folder that this process drives; None if it does not."""
    return None if folder is None else _DRIVEN.get(folder.resolve())


def typed_path(typed: str | Path) -> Path:
    """Return the path that somebody means; a ``~`` before it is their folder.

    Raises
    ------
    PlanError
        If it can be no path.
    """
    try:
        if "\0" in str(typed):
            raise ValueError("no name has a zero byte")
        return Path(typed).expanduser()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(
            f"{str(typed)!r} is no path ({str(error).rstrip('.')}); give the whole path, such as "
            f"{str(Path.cwd() / DEFAULT_FOLDER)!r}."
        ) from None


class Folder:
    """A new folder for the records of something; files in it are replaced whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=False, mode=0o700)

    @classmethod
    def create(cls, parent: str | Path | None, name: str) -> Self:
        """Make a new folder ``name`` (with a number if it is taken) below ``parent``.

        Raises
        ------
        PlanError
            If it cannot be made there.
        """
        try:
            parent = Path(DEFAULT_FOLDER if parent is None else parent).expanduser()
            for number in range(1, 10_000):
                try:
                    return cls(parent / (name if number == 1 else f"{name}-{number}"))
                except FileExistsError:
                    continue
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PlanError(
                f"folder={str(parent)!r} cannot hold the records of runs ({reason}); give a folder "
                "that can be written to."
            ) from error
        raise PlanError(f"folder={str(parent)!r} holds 10,000 runs of the name {name!r}.")

    def replace(self, name: str, text: str) -> None:
        """Write a file, in the place of one of that name if there is one."""
        scratch = self.path / f".{name}"
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, self.path / name)


class RunFolder(Folder):
    """Writes ``run.json``, ``steps.jsonl`` and ``spans.jsonl``, to be read at any time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._live: dict[str, TextIO] = {
            name: (path / name).open("w", encoding="utf-8") for name in (STEPS, SPANS)
        }
        self._written = 0

    def add(self, rows: Iterable[Row], spans: Sequence[SpanRow], ranks: int) -> None:
        """Append steps, and the first of the spans, as they become known."""
        if self._live:
            self._live[STEPS].write(_lines(rows))
            spans = spans[: max(0, LIVE_SPANS * ranks - self._written)]
            self._written += len(spans)
            self._live[SPANS].write(_span_lines(spans))
            for file in self._live.values():
                file.flush()

    def close(self) -> None:
        """Append no more."""
        for file in self._live.values():
            file.close()
        self._live = {}

    def finish(self, summary: Mapping[str, Any], rows: Iterable[Row], spans: list[SpanRow]) -> None:
        """Replace the live records by the exact ones and write the summary; whole or not at all.

        ``spans`` are by rank and time; of those of a rank the newest are kept.
        """
        self.close()
        self.replace(STEPS, _lines(rows))
        by_rank: dict[int, deque[SpanRow]] = defaultdict(partial(deque, maxlen=MOST_SPANS))
        for span in spans:
            by_rank[span["rank"]].append(span)
        self.replace(SPANS, "".join(map(_span_lines, by_rank.values())))
        self.write_summary(summary)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``run.json``, with who it is that drives the run."""
        self.replace(RUN, json.dumps({**summary, "driver": driver()}, indent=1) + "\n")


class ComparisonFolder(Folder):
    """Writes ``comparison.json`` beside the folders of the runs."""

    def write(
        self, document: Mapping[str, Any], entries: Iterable[Entry], recorded: Mapping[str, str]
    ) -> None:
        """Write all that there is: the document, and which runs its lines rest on.

        ``recorded`` has the folder of the run that each timeline is from, by its label.
        """
        lines = []
        for entry in entries:
            told = {key: value for key, value in vars(entry).items() if key != "runs"}
            lines.append(told | {"runs": [run.folder.name for run in entry.runs]})
        whole = {**document, "lines": lines, "timelines": dict(recorded), "driver": driver()}
        self.replace(COMPARISON, json.dumps(finite(whole), indent=1) + "\n")


class Tail:
    """The lines that a file has got since the last look."""

    def __init__(self, file: Path) -> None:
        self._file, self._at_bytes, self._inode = file, 0, 0

    def look(self) -> tuple[list[str], bool]:
        """Return whole lines, at most ``MOST_BYTES``, and whether they begin with the first one.

        They do at the first look, and where another file was put in this one's place.
        """
        with self._file.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            all_again = inode != self._inode
            self._inode, self._at_bytes = inode, 0 if all_again else self._at_bytes
            file.seek(self._at_bytes)
            news = file.read(MOST_BYTES)
        whole = news[: news.rfind(b"\n") + 1]
        self._at_bytes += len(whole)
        return whole.decode("utf-8").splitlines(), all_again


def driver() -> dict[str, Any]:
    """Return who writes: this machine and process, told apart from a later one of its number."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_s": psutil.Process().create_time(),
    }


def drives(told: Mapping[str, Any]) -> bool | None:
    """Return whether the process that :func:`driver` told of still lives; None if unknown here."""
    if told.get("host") != socket.gethostname():
        return None
    try:
        return bool(psutil.Process(told["pid"]).create_time() == told["started_s"])
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def read(folder: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Return summary and step records of a run folder; a last line that is cut off is left out.

    While a run goes on, what becomes known of a step later has a line of its own.

    Raises
    ------
    FileNotFoundError
        If there is no run in ``folder``.
    """
    folder = Path(folder)
    summary = json.loads((folder / RUN).read_text(encoding="utf-8"))
    rows: list[Row] = []
    join(rows, map(json.loads, _whole_lines(folder / STEPS)))
    return summary, rows


def read_spans(folder: str | Path) -> list[SpanRow]:
    """Return the spans of a run folder; none if it has no such file."""
    file = Path(folder) / SPANS
    lines = _whole_lines(file) if file.is_file() else []
    return [dict(zip(SPAN_KEYS, json.loads(line), strict=True)) for line in lines]


def finite(value: Any) -> Any:
    """Return ``value`` with null for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def name_of(workload: str, what: str) -> str:
    """Return the name of a folder: when, of which workload, and what."""
    return f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{safe_name(workload)}-{what}"


def safe_name(name: str) -> str:
    """Return a workload's name as part of a folder's name, of at most 60 bytes."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return kept.encode()[:60].decode(errors="ignore") or "run"


def _lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _span_lines(spans: Iterable[SpanRow]) -> str:
    return _lines([span[key] for key in SPAN_KEYS] for span in spans)


def _whole_lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
