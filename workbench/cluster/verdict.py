"""Which of many things that went wrong is the cause, and how the user is told."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import RunError

_KILLED = "was killed from outside with SIGKILL, by somebody or by the system when memory ran out"


@dataclass(frozen=True)
class Failure:
    """What went wrong at one rank.

    ``kind`` is "error" (the target raised), "died", "worker" (its worker is gone), "start" (it
    never ran) or "comm" (it lost contact with others), mostly an effect of another failure.
    """

    rank: int
    kind: str
    worker: str
    text: str = ""
    pid: int | None = None
    exit_code: int | None = None
    step: int | None = None
    details: str = field(default="", repr=False)

    @property
    def is_cause(self) -> bool:
        """Whether it needs no other failure to explain it."""
        return self.kind != "comm"


def failure_from(report: Mapping[str, Any], worker: str) -> Failure | None:
    """Return the failure that a host's report of a rank tells of, if it does."""
    outcome = report["outcome"]
    if outcome is None or outcome["kind"] == "result":
        return None
    log = outcome["log"].strip()
    parts = [outcome["traceback"].strip(), log and f"Printed by the rank, the last lines:\n{log}"]
    return Failure(
        rank=report["rank"],
        kind=outcome["kind"],
        worker=worker,
        text=outcome["text"],
        pid=report["pid"],
        exit_code=outcome["exit_code"],
        step=report["step"],
        details="\n\n".join(part for part in parts if part),
    )


def first_cause(failures: Iterable[Failure]) -> Failure:
    """Return the first failure that needs no other to explain it, else the first."""
    told = list(failures)
    return next((failure for failure in told if failure.is_cause), told[0])


def run_error(run_id: str, cause: Failure, step: int | None) -> RunError:
    """Return the error for a run that ended by ``cause``; ``step`` is where the run was."""
    step = step if cause.step is None else cause.step
    at = "" if step is None else f" at step {step}"
    sentence = f"{_what_happened(cause, at)} Run {run_id} was ended and its other ranks stopped."
    return RunError(sentence, rank=cause.rank, step=step, details=cause.details)


def _what_happened(cause: Failure, at: str) -> str:
    who = f"Rank {cause.rank} (process {cause.pid}, worker {cause.worker})"
    if cause.kind == "error":
        return f"Rank {cause.rank} raised{at}: {cause.text} (worker {cause.worker})."
    if cause.kind == "comm":
        return f"Rank {cause.rank} lost contact with the other ranks{at}: {cause.text}."
    if cause.kind == "start":
        return f"Rank {cause.rank} could not be started on worker {cause.worker}: {cause.text}"
    if cause.kind == "worker":
        how = f" ({cause.text})" if cause.text else ""
        return f"Worker {cause.worker} is gone, and rank {cause.rank} with it{at}{how}."
    if cause.exit_code is None:
        return f"{who} ended{at} because the forkserver, which starts the ranks there, was lost."
    if cause.exit_code == -signal.SIGKILL:
        return f"{who} {_KILLED}{at}."
    if cause.exit_code < 0:
        return f"{who} crashed{at} with {_signal_name(-cause.exit_code)}."
    return f"{who} ended{at} with exit code {cause.exit_code} before its work was done."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
