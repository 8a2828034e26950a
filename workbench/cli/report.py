"""``workbench report``: an HTML report of what was measured before."""

from __future__ import annotations

from pathlib import Path

import click

from workbench.cli import options


@click.command(short_help="Write an HTML report of what was measured.")
@click.argument("measured", type=click.Path(path_type=Path), metavar="FOLDER|JSON")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
def report(measured: Path, output: Path) -> None:
    """Write one self-contained HTML file that opens with the network off.

    FOLDER is that of a run or of a comparison, or one that holds such folders, of which the newest
    is taken; JSON is what `workbench compare --json` or `workbench demo --json` printed.
    """
    from workbench.attaching import as_comparison, attach
    from workbench.measured import Measured
    from workbench.ui.report import write_report

    found = attach(measured)
    saved = as_comparison(found) if isinstance(found, Measured) else found
    click.echo(write_report(saved, options.report_path(output)).absolute())
