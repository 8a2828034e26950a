"""The folder of a run: what was asked, one JSON record per step, and how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from workbench.errors import PlanError

DEFAULT_FOLDER = "workbench-runs"


class RunFolder:
    """Writes ``run.json`` and ``steps.jsonl``; both can be read at any time while a run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=False, mode=0o700)
        self._steps: TextIO | None = (path / "steps.jsonl").open("w", encoding="utf-8")

    @classmethod
    def create(cls, parent: str | Path | None, name: str) -> RunFolder:
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

    def add_steps(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Append the records of steps as they become known."""
        if self._steps is not None:
            self._steps.writelines(json.dumps(row) + "\n" for row in rows)
            self._steps.flush()

    def finish(self, summary: Mapping[str, Any], rows: Iterable[Mapping[str, float]]) -> None:
        """Replace the live records by the exact ones and write the summary; whole or not at all."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        self._replace("steps.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.write_summary(summary)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``run.json``."""
        self._replace("run.json", json.dumps(summary, indent=1) + "\n")

    def _replace(self, name: str, text: str) -> None:
        scratch = self.path / f".{name}"
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, self.path / name)


def read(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return summary and step records of a run folder.

    Raises
    ------
    FileNotFoundError
        If there is no run in ``folder``.
    """
    folder = Path(folder)
    summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    steps = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return summary, [json.loads(line) for line in steps]


def safe_name(name: str) -> str:
    """Return a workload's name as part of a folder's name, of at most 60 bytes."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return kept.encode()[:60].decode(errors="ignore") or "run"
