"""``workbench compare``: several strategies against the serial run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType
from rich.text import Text

from workbench import machine
from workbench.amdahl import fits
from workbench.cli import options
from workbench.cli.follow import Progressed, follow
from workbench.cli.tables import comparison_tables, cost_table, why_table
from workbench.cli.terminal import Terminal, figures_command
from workbench.errors import PlanError
from workbench.findings import findings, sameness
from workbench.strategies.choices import without_effect
from workbench.timeline import write_trace
from workbench.ui.language import text, translate

if TYPE_CHECKING:
    from workbench.comparison import Comparison
    from workbench.workload import Workload


out: options.Decorator = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder in which the comparison makes its own, with all runs. [default: workbench-runs]",
)


@click.command(short_help="Time strategies against the serial run.")
@click.argument("workload")
@click.argument("strategies", nargs=-1, required=True, metavar="STRATEGY...")
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
def compare(
    workload: str,
    strategies: tuple[str, ...],
    *,
    terminal: Terminal,
    steps: int | None,
    repeats: int,
    workers: int | None,
    threads: int | None,
    device: str,
    batch: int | None,
    seed: int | None,
    choices: dict[str, Any],
    trace: Path | None,
    out: Path | None,
    report: Path | None,
    price_per_worker_hour: float | None,
) -> None:
    """Time each STRATEGY, such as data=2, against the serial run, and prove its result.

    WORKLOAD is a name of the catalogue: digits-cnn, digits-mlp, photo-denoise, stdlib-gpt.
    """
    from workbench.workload import workload as catalogued

    work = catalogued(workload, **options.workload_changes(batch, seed))
    if report is not None:
        options.report_path(report)
    comparison = measure(
        work,
        strategies,
        terminal,
        steps=steps or work.steps,
        repeats=repeats,
        workers=workers,
        threads=threads,
        device=device,
        folder=out,
        spans=trace is not None or report is not None,
        choices=choices,
        price_per_worker_hour=price_per_worker_hour,
    )
    show(comparison, terminal, trace, report)


def show(
    comparison: Comparison,
    terminal: Terminal,
    trace: Path | None,
    report: Path | None,
) -> None:
    """Write what was asked for of an ended comparison, and print its figures."""
    document = comparison_document(comparison)
    if trace is not None:
        document["trace"] = str(write_trace(comparison, trace))
    if report is not None:
        from workbench.ui.report import write_report

        document["report"] = str(write_report(comparison, report))
    terminal.figures(document, *comparison_figures(comparison))
    terminal.say("", Text(text("term.record", path=comparison.folder)))
    if report is not None:
        terminal.say("", Text(text("term.report", path=report)))
    if trace is not None:
        terminal.say("", Text(text("term.trace", path=trace)))


def measure(
    work: Workload,
    strategies: tuple[str, ...],
    terminal: Terminal,
    *,
    steps: int,
    workers: int | None,
    threads: int | None,
    choices: dict[str, Any] | None = None,
    skip_refused: bool = False,
    **asked: Any,
) -> Comparison:
    """Start a cluster that is large enough, compare on it, show the progress, and close it.

    With ``skip_refused``, strategies that cannot be done are left out and named.

    Raises
    ------
    PlanError
        If a strategy cannot be done; nothing was started then.
    RunError
        If a run breaks.
    """
    from workbench.cluster.starting import start
    from workbench.compare import compare as start_comparison
    from workbench.compare import planned
    from workbench.measured import WARM_UP_STEPS
    from workbench.speedup import FEWEST_STEPS

    if steps < WARM_UP_STEPS + FEWEST_STEPS:
        raise PlanError(
            f"--steps {steps} is too few to time: the first {WARM_UP_STEPS} steps warm up and do "
            f"not count; use {WARM_UP_STEPS + FEWEST_STEPS} or more."
        )
    plans, _ = planned(work, strategies, skip_refused, **(choices or {}))
    largest = max(plans, key=lambda p: p.ranks)
    if idle := without_effect(dict(largest.options), largest.mesh, *(p.mesh for p in plans)):
        terminal.say(Text(translate(idle)))
    with start(
        workers=options.enough_workers(workers, largest.ranks, largest.strategy), threads=threads
    ) as lab:
        if lab.dashboard_link:
            terminal.say(Text(text("term.dashboard", link=lab.dashboard_link), "dim"))
        comparison = start_comparison(
            work,
            strategies,
            steps=steps,
            lab=lab,
            wait=False,
            skip_refused=skip_refused,
            **asked,
            **(choices or {}),
        )

        def progress() -> Progressed:
            now = comparison.progress
            return Progressed(now.done_steps, now.total_steps, now.eta_s, translate(now.text))

        def figures() -> RenderableType:
            rows = comparison.rows
            return comparison_tables(rows) if rows else Text(text("term.nothing"), "dim")

        follow(comparison, terminal, progress, figures)
    return comparison


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Return what ``--json`` prints: machine, workload, rows, findings and the folder."""
    return {
        **comparison.to_json(),
        "finding": _sentences(comparison),
        "folder": str(comparison.folder),
    }


def comparison_figures(comparison: Comparison) -> list[RenderableType]:
    """Return what a reader sees: the tables and the findings."""
    rows = comparison.rows
    sentences = [Text(translate(sentence)) for sentence in _sentences(comparison)]
    if not sentences:
        return [comparison_tables(rows)]
    return [
        comparison_tables(rows),
        Text(),
        why_table(rows, machine.cores()),
        Text(),
        cost_table(rows),
        Text(),
        *sentences,
    ]


def _sentences(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    laws = [fit.sentence for fit in fits(rows)]
    return [*findings(rows, machine.cores()), *laws, *sameness(rows)]
