"""``workbench lab``: JupyterLab with the panel open, or with a lesson."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Open JupyterLab with the panel, or a lesson.")
@click.option("--lesson", default="00", show_default=True, help="Number of the lesson to open.")
@click.option(
    "--lang",
    type=click.Choice(["en", "zh"]),
    help="Language of the panel, and of what else speaks it. [default: WORKBENCH_LANG]",
)
@click.option("--voila", is_flag=True, help="The panel alone, as a page of Voilà's, for a class.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("workbench-notebooks"),
    show_default=True,
    help="Where the notebooks are kept; those that are there are not written over.",
)
@click.option("--port", type=int, help="Port on 127.0.0.1. [default: 8888, or the next free one]")
@click.option("--browser/--no-browser", default=True, help="Open a web browser, or not.")
@click.pass_context
def lab(
    ctx: click.Context,
    lesson: str,
    lang: str | None,
    voila: bool,
    folder: Path,
    port: int | None,
    browser: bool,
) -> None:
    """Open JupyterLab on a lesson, the first of which starts the panel; Ctrl-C ends it."""
    from workbench.ui.lab import launch_lab

    ctx.exit(launch_lab(folder, port=port, browser=browser, lesson=lesson, lang=lang, voila=voila))
