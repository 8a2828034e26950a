"""``workbench share``: all that is chosen in an experiment as one line of text, and back."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from workbench.cli import options
from workbench.cli.terminal import Terminal, figures_command
from workbench.controls import python
from workbench.sharing import decode, encode


@click.group(short_help="Make or read the code of an experiment.")
def share() -> None:
    """Make or read a share code: all controls of an experiment in one line of text."""


@share.command("encode", short_help="Make a share code.")
@click.argument("workload")
@click.argument("strategies", nargs=-1, required=True, metavar="STRATEGY...")
@options.steps
@click.option("--repeats", type=click.IntRange(min=1), help="Timed runs of each strategy.")
@options.workers
@options.threads
@options.batch
@options.seed
@options.choices
@click.option("--accumulate", type=click.IntRange(min=1), help="Micro-batches per step.")
@click.option("--hide", multiple=True, metavar="NAME", help="A control that the panel leaves out.")
@click.option("--lock", multiple=True, metavar="NAME", help="A control that cannot be changed.")
@figures_command
def encode_command(
    workload: str,
    strategies: tuple[str, ...],
    *,
    terminal: Terminal,
    choices: dict[str, Any],
    hide: tuple[str, ...],
    lock: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Print the share code of WORKLOAD under the first STRATEGY, compared with the others."""
    first, *others = strategies
    controls = {
        "workload": workload,
        "strategy": first,
        "compare": others or None,
        "hidden": hide or None,
        "locked": lock or None,
        **chosen,
        **choices,
    }
    code = encode(controls)
    terminal.figures({"code": code, "controls": decode(code)}, Text(code))


@share.command("decode", short_help="Say what a share code asks for.")
@click.argument("code")
@click.option("--python", "as_python", is_flag=True, help="Print a Python program that does it.")
@figures_command
def decode_command(code: str, *, terminal: Terminal, as_python: bool) -> None:
    """Print what CODE asks for, every field checked."""
    controls = decode(code)
    program = python(controls)
    document = {"controls": controls, "python": program}
    if as_python:
        terminal.figures(document, Text(program.rstrip()))
        return
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, show_edge=False)
    for name, value in controls.items():
        table.add_row(name, Text(", ".join(value) if isinstance(value, list) else str(value)))
    terminal.figures(document, table)
