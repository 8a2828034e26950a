"""``workbench doctor``: look whether everything is here that the workbench needs."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.table import Table
from rich.text import Text

from workbench import machine
from workbench.cli.checks import State, examine
from workbench.cli.terminal import Terminal, figures_command
from workbench.ui import texts
from workbench.ui.language import text

STYLES: dict[State, str] = {"good": "green", "note": "yellow", "wrong": "bold red"}


@click.command(short_help="Look at this machine and its packages.")
@figures_command
def doctor(*, terminal: Terminal) -> None:
    """Look at this machine and its packages; fails if something is wrong."""
    checks = list(examine())
    wrong = [check for check in checks if check.state == "wrong"]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        table.add_row(
            Text(text(f"doctor.{check.state}"), STYLES[check.state]), check.label, check.sentence
        )
    terminal.figures(
        {
            "healthy": not wrong,
            "machine": machine.describe(),
            "checks": [asdict(c) for c in checks],
        },
        table,
    )
    terminal.say(
        "",
        Text(text("doctor.mend", things=texts.count(len(wrong), "thing")), "bold red")
        if wrong
        else Text(text("doctor.well"), "green"),
    )
    if wrong:
        raise click.exceptions.Exit(1)
