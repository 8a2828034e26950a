"""The two errors a user meets."""

from __future__ import annotations


class PlanError(ValueError):
    """What was asked cannot be done; nothing was started.

    The sentence says what was asked, which constraint stands against it, the numbers, and the
    nearest thing that works.
    """


class RunError(RuntimeError):
    """Something broke while a run was starting or going on.

    Attributes
    ----------
    rank, step:
        Where it broke, or None where that is not one place.
    details:
        What a developer wants beyond the sentence: a traceback, a log; may be empty.
    """

    def __init__(
        self, message: str, *, rank: int | None = None, step: int | None = None, details: str = ""
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.step = step
        self.details = details
