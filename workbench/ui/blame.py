"""Whose fault a refusal is: the control that asked for what cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from workbench.errors import PlanError, RunError
from workbench.ui.language import Say, translate


class RefusedError(Exception):
    """What was asked cannot be done; names the control that asked for it."""

    def __init__(self, control: str, sentence: Say, details: str = "") -> None:
        super().__init__(sentence())
        self.control, self.sentence, self.details = control, sentence, details


@contextmanager
def blame(control: str) -> Iterator[None]:
    """Mark what a block refuses as the fault of one control."""
    try:
        yield
    except (PlanError, RunError) as error:
        said = partial(translate, str(error))
        raise RefusedError(control, said, getattr(error, "details", "")) from error
