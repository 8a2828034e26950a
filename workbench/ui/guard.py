"""One guard for all that the panel does by itself: an error ends the task, and never its thread."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from workbench.errors import PlanError, RunError
from workbench.ui.language import text, translate


@dataclass(frozen=True)
class Broken:
    """What a task broke with.

    Attributes
    ----------
    error:
        The error's type and message, or a sentence of ours in English.
    details:
        What a developer wants beyond that.
    foreseen:
        Whether it is a sentence of ours.
    """

    error: str
    details: str
    foreseen: bool = False

    @classmethod
    def of(cls, error: Exception) -> Broken:
        """Return what an error says; called while it is handled."""
        if isinstance(error, PlanError | RunError):
            return cls(str(error), str(getattr(error, "details", "")), foreseen=True)
        return cls(f"{type(error).__name__}: {error}", traceback.format_exc())

    @property
    def sentence(self) -> str:
        """What people are told, in the language of this thread."""
        return translate(self.error) if self.foreseen else text("problem.task", error=self.error)


class Guard:
    """Keeps errors within the tasks that they break.

    Attributes
    ----------
    found:
        What tasks have broken with, by their names, each until it ends well. It is replaced whole,
        so that other threads may read it.
    """

    def __init__(self) -> None:
        self.found: Mapping[str, Broken] = {}

    def forget(self) -> None:
        """Let go of what is known, where something new begins."""
        self.found = {}

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Carry out a block as the task of that name."""
        try:
            yield
        except Exception as error:
            self.found = {**self.found, name: Broken.of(error)}
        else:
            if name in self.found:
                self.found = {each: why for each, why in self.found.items() if each != name}
