"""``workbench demo``: from nothing to a measured speedup, a proof and a report."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from workbench import machine
from workbench.cli import options
from workbench.cli.compare import comparison_document, comparison_figures, measure
from workbench.cli.terminal import Terminal, figures_command
from workbench.plan import in_binary_units
from workbench.ui import texts
from workbench.ui.language import text

if TYPE_CHECKING:
    from workbench.workload import Workload

MOST_WORKERS = 4
"""Workers of a demonstration on a machine with many cores: it should show a gain, not a limit."""


@click.command(short_help="See a measured speedup in a minute.")
@click.option(
    "--workload", default="digits-cnn", show_default=True, help="A workload of the catalogue."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Updates per run; the first 3 warm up.",
)
@options.repeats
@click.option(
    "--workers",
    type=click.IntRange(min=2),
    help=f"Workers, one rank on each. [default: the cores, at least 2, at most {MOST_WORKERS}]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Torch threads per rank.",
)
@options.device
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=Path("workbench-demo.html"),
    show_default=True,
    help="The file to write the HTML report to.",
)
@figures_command
def demo(
    *,
    terminal: Terminal,
    workload: str,
    steps: int,
    repeats: int,
    workers: int | None,
    threads: int,
    device: str,
    report: Path,
) -> None:
    """Train one workload serial and data parallel, and show speedup, proof and report."""
    from workbench.workload import workload as catalogued

    options.report_path(report)
    workers = workers or min(max(2, machine.physical_cores()), MOST_WORKERS)
    strategy = f"data={workers}"
    work = catalogued(workload)
    terminal.say(_found(work, workers, threads), "")
    with TemporaryDirectory(prefix="workbench-demo-") as runs:
        comparison = measure(
            work,
            ("serial", strategy),
            terminal,
            steps=steps,
            repeats=repeats,
            workers=workers,
            threads=threads,
            device=device,
            folder=runs,
            spans=True,
        )
        from workbench.ui.report import write_report

        document = comparison_document(comparison)
        document["report"] = str(write_report(comparison, report).absolute())
    del document["folder"]  # their folders are gone
    terminal.figures(document, *comparison_figures(comparison))
    terminal.say("", Text(text("term.report", path=document["report"])))


def _found(work: Workload, workers: int, threads: int) -> Table:
    """Return what there is, before anything starts."""
    gpus = machine.gpus()
    parts = [
        machine.cpu_model(),
        texts.count(machine.cores(), "core"),
        text("term.memory", bytes=in_binary_units(machine.memory_bytes())),
        ", ".join(f"{gpu.name} ({in_binary_units(gpu.memory_bytes)})" for gpu in gpus)
        or text("term.no_gpu"),
    ]
    shape = " + ".join("×".join(map(str, one)) for one in work.sample_shapes)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_row(text("term.machine"), ", ".join(parts))
    versions = ", ".join(f"{name} {v}" for name, v in machine.versions().items() if v)
    table.add_row(text("term.versions"), versions)
    samples = texts.count(work.samples, "sample")
    told = text(
        "term.workload", name=work.name, samples=samples, shape=shape, batch=work.batch_size
    )
    table.add_row(text("term.workload.name"), told)
    size = {
        "workers": texts.count(workers, "worker"),
        "threads": texts.count(threads, "thread"),
    }
    table.add_row(text("term.cluster"), text("term.cluster.told", **size))
    return table
