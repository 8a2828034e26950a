"""The command ``workbench``: what the door of the library offers, from a shell.

Exit codes: 0 done, 1 failed, 2 asked for what cannot be done, 130 interrupted. Figures go to
stdout, progress and errors to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from workbench import __version__
from workbench.cli.compare import compare
from workbench.cli.demo import demo
from workbench.cli.doctor import doctor
from workbench.cli.export import export
from workbench.cli.lab import lab
from workbench.cli.report import report
from workbench.cli.run import run
from workbench.cli.share import share
from workbench.cli.sweep import sweep
from workbench.cli.verify import verify
from workbench.errors import PlanError, RunError
from workbench.ui.language import text, translate

TERMINATED = 143
"""Exit code after SIGTERM, as a shell gives it."""


class Refused(click.ClickException):
    """What was asked cannot be done, in one sentence; nothing was started."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C."""

    exit_code = 130


class Commands(click.Group):
    """The group of all commands: turns our errors into sentences and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except PlanError as error:
            raise Refused(translate(str(error))) from error
        except RunError as error:
            if error.details:
                click.echo(error.details.rstrip(), err=True)
            raise click.ClickException(translate(str(error))) from error
        except KeyboardInterrupt:
            raise Interrupted(text("term.interrupted")) from None


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the command as an exception does, so that it takes down what it started."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group("workbench", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="workbench")
def commands() -> None:
    """Try, compare and prove ways to run one model in parallel on Dask workers."""


for command in (demo, run, compare, sweep, verify, report, export, share, lab, doctor):
    commands.add_command(command)


def main() -> NoReturn:
    """Run the command that this process was started for, and end the process."""
    try:
        commands(prog_name="workbench")
    except SystemExit as end:
        if end.code in (Interrupted.exit_code, TERMINATED):
            # Whoever interrupts wants the prompt back, and everything is stopped by now. Python
            # would still go through all that torch and Dask have loaded, which can take seconds.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise
    raise SystemExit(0)
