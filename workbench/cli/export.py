"""``workbench export``: what was measured as files for other programs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write what was measured as CSV, SVG, PNG, HTML or a trace.")
@click.argument("measured", type=click.Path(path_type=Path), metavar="FOLDER|JSON")
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
def export(measured: Path, targets: tuple[Path, ...]) -> None:
    """Write what was measured to every one of TARGETS, by its ending.

    .csv is the table, .steps.csv every step, .trace.json what the ranks did (for ui.perfetto.dev),
    .svg and .png the figures, .html the report, .json the table with its machine; a folder gets
    all of these. FOLDER is that of a run or of a comparison, or one that holds such folders, of
    which the newest is taken; JSON is what `workbench compare --json` printed.
    """
    from workbench.attaching import attach
    from workbench.ui.exporting import export as write

    found = attach(measured)
    for target in targets:
        for path in write(found, target):
            click.echo(path)
