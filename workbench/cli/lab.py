"""``workbench lab``: JupyterLab with the panel open."""

from __future__ import annotations

import click


@click.command(short_help="Open JupyterLab with the panel.")
@click.pass_context
def lab(ctx: click.Context) -> None:
    """Open JupyterLab with the notebook that starts the panel."""
    from workbench.ui.lab import launch_lab

    ctx.exit(launch_lab())
