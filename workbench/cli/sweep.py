"""``workbench sweep``: every strategy that suits a workload, against the serial run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from workbench import machine
from workbench.cli import options
from workbench.cli.compare import measure, out, show
from workbench.cli.terminal import Terminal, figures_command
from workbench.ui.language import text, translate


@click.command(short_help="Time every strategy that suits a workload.")
@click.argument("workload")
@click.option(
    "--hybrids/--no-hybrids", default=True, show_default=True, help="Try two axes at once, too."
)
@options.steps
@options.repeats
@options.workers
@options.threads
@options.device
@options.batch
@options.seed
@options.choices
@options.trace
@out
@options.report
@options.price
@figures_command
def sweep(
    workload: str,
    *,
    terminal: Terminal,
    hybrids: bool,
    steps: int | None,
    workers: int | None,
    batch: int | None,
    seed: int | None,
    trace: Path | None,
    out: Path | None,
    report: Path | None,
    **asked: Any,
) -> None:
    """Time every strategy on up to --workers ranks, and say why others cannot be done.

    WORKLOAD is a name of the catalogue: digits-cnn, digits-mlp, photo-denoise, stdlib-gpt.
    """
    from workbench.sweep import candidates
    from workbench.workload import workload as catalogued

    work = catalogued(workload, **options.workload_changes(batch, seed))
    if report is not None:
        options.report_path(report)
    workers = workers or max(2, min(machine.physical_cores(), 4))
    comparison = measure(
        work,
        tuple(candidates(workers, hybrids)),
        terminal,
        steps=steps or work.steps,
        workers=workers,
        folder=out,
        spans=trace is not None or report is not None,
        skip_refused=True,
        **asked,
    )
    show(comparison, terminal, trace, report)
    if comparison.refused:
        terminal.say("", refused_table(comparison.refused))


def refused_table(refused: dict[str, str]) -> Table:
    """Return the strategies that cannot be done, each with the reason."""
    table = Table(
        title=text("term.title.refused"), title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim",
    )  # fmt: skip
    table.add_column(text("term.strategy"), no_wrap=True)
    table.add_column(text("term.reason"), overflow="fold")
    for strategy, sentence in refused.items():
        table.add_row(strategy, Text(translate(sentence)))
    return table
