"""Where a command writes: figures to stdout, progress and errors to stderr."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import click
from rich.console import Console, RenderableType
from rich.text import Text

from workbench.records import finite

PIPED_WIDTH = 100
"""Columns where the output is no terminal, unless COLUMNS says otherwise."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The two streams of one command and how much is wanted on them.

    Colours follow the terminal and ``NO_COLOR``. With ``json`` nothing but one JSON document goes
    to ``out``; with ``quiet`` nothing but the figures.
    """

    out: Console
    err: Console
    json: bool = False
    quiet: bool = False

    @classmethod
    def open(cls, *, json: bool = False, quiet: bool = False) -> Terminal:
        """Return the terminal on this process's stdout and stderr."""
        return cls(_console(sys.stdout), _console(sys.stderr), json, quiet)

    def say(self, *items: RenderableType) -> None:
        """Print what a reader wants to know beside the figures."""
        if not (self.json or self.quiet):
            self._print(*items)

    def figures(self, document: Mapping[str, Any], *items: RenderableType) -> None:
        """Print the figures: ``document`` to a program, or ``items`` to a reader."""
        if self.json:
            click.echo(json.dumps(finite(document), indent=2, allow_nan=False))
        else:
            self._print(*items)

    def _print(self, *items: RenderableType) -> None:
        for item in items:
            # Sentences and paths that go to a file or a pipe stay on one line.
            text = isinstance(item, str | Text)
            self.out.print(item, soft_wrap=text and not self.out.is_terminal)


def figures_command(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command ``--json`` and ``--quiet``, and the :class:`Terminal` they ask for."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document, nothing else.")
    @click.option("--quiet", is_flag=True, help="Print figures only: no progress, no remarks.")
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        command(*args, terminal=Terminal.open(json=as_json, quiet=quiet), **options)

    return wrapped


def _console(stream: TextIO) -> Console:
    if isinstance(stream, io.TextIOWrapper):
        # Where a sign such as × cannot be shown, a question mark stands in for it.
        stream.reconfigure(errors="replace")
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(file=stream, width=PIPED_WIDTH if piped else None, highlight=False, markup=False)
