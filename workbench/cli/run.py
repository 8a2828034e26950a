"""``workbench run``: one workload under one strategy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from workbench.arguments import KEEP_CHECKPOINTS
from workbench.cli import options
from workbench.cli.figures import NOTHING, number
from workbench.cli.follow import Progressed, follow
from workbench.cli.terminal import Terminal, figures_command
from workbench.plan import in_binary_units
from workbench.strategies.choices import without_effect
from workbench.timeline import write_trace
from workbench.ui import texts
from workbench.ui.language import text, translate

if TYPE_CHECKING:
    from workbench.run import Run


@click.command(short_help="Train a workload under one strategy.")
@click.argument("workload")
@click.option(
    "--strategy",
    help="serial, data=2, spatial=2 … [default: serial, or that of --from]",
)
@options.steps
@options.workers
@options.threads
@options.device
@options.batch
@options.seed
@options.choices
@options.trace
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder in which the run makes its own. [default: workbench-runs]",
)
@click.option(
    "--from",
    "origin",
    type=click.Path(path_type=Path),
    help="Checkpoint to go on from, or weights to begin with (.safetensors, .pt).",
)
@click.option(
    "--save",
    "target",
    type=click.Path(path_type=Path),
    help="Where to keep what the run has come to: a checkpoint, or weights (.safetensors).",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Save after every so many steps and at the end; needs --checkpoint-to.",
)
@click.option(
    "--checkpoint-to",
    type=click.Path(path_type=Path),
    help="Folder of checkpoints, which --from takes too: it goes on from the newest.",
)
@click.option(
    "--checkpoint-keep",
    type=click.IntRange(min=1),
    default=KEEP_CHECKPOINTS,
    show_default=True,
    help="How many checkpoints stay.",
)
@figures_command
def run(
    workload: str,
    *,
    terminal: Terminal,
    strategy: str | None,
    steps: int | None,
    workers: int | None,
    threads: int | None,
    device: str,
    batch: int | None,
    seed: int | None,
    choices: dict[str, Any],
    trace: Path | None,
    out: Path | None,
    origin: Path | None,
    target: Path | None,
    checkpoint_every: int | None,
    checkpoint_to: Path | None,
    checkpoint_keep: int,
) -> None:
    """Train WORKLOAD under one strategy and keep a record of every step.

    WORKLOAD is a name of the catalogue: digits-cnn, digits-mlp, photo-denoise, stdlib-gpt.
    """
    from workbench.checkpoint.loading import load, options_at
    from workbench.checkpoint.saving import check_target, save
    from workbench.cluster.starting import start
    from workbench.planning import plan
    from workbench.run import run as start_run
    from workbench.workload import workload as catalogued

    work = catalogued(workload, **options.workload_changes(batch, seed))
    if target is not None:
        check_target(target)
    if origin is not None:
        strategy, choices = options_at(origin, strategy, choices)
    strategy = strategy or "serial"
    ranks = plan(work, strategy, **choices).ranks
    with start(workers=options.enough_workers(workers, ranks, strategy), threads=threads) as lab:
        begun = None
        if origin is not None:
            begun = load(origin, strategy, work=work, lab=lab, **choices)
        started = start_run(
            work,
            strategy,
            steps=steps,
            device=device,
            folder=out,
            lab=lab,
            start=begun,
            checkpoint_every=checkpoint_every,
            checkpoint_to=checkpoint_to,
            checkpoint_keep=checkpoint_keep,
            **choices,
        )
        follow(started, terminal, lambda: _progress(started))
        saved = None if target is None else save(started, target)
    document = run_document(started, saved)
    if trace is not None:
        document["trace"] = str(write_trace(started, trace))
    terminal.figures(document, run_table(started, saved))
    if trace is not None:
        terminal.say("", Text(text("term.trace", path=trace)))


def run_document(run: Run, saved: Path | None = None) -> dict[str, Any]:
    """Return what ``--json`` prints: the summary, where the ranks were, and every step."""
    return {
        **run.summary(),
        "first_step": run.first_step,
        "saved": None if saved is None else str(saved),
        "folder": str(run.folder),
        "placement": [asdict(rank) for rank in run.ranks],
        "history": run.history,
    }


def run_table(run: Run, saved: Path | None = None) -> Table:
    """Return the figures of an ended run, one a line."""
    first, last = run.history[0], run.history[-1]
    ranks = texts.count(run.plan.ranks, "rank")
    threads = texts.count(run.threads, "thread")
    where = f"{ranks} × {threads}, {run.device}, {translate(run.backend)}"
    step_s, accuracy = run.step_s, run.accuracy
    losses = {
        **{"before": f"{first['loss']:.4g}", "first": run.first_step + 1},
        **{"after": f"{last['loss']:.4g}", "last": run.first_step + len(run.history)},
    }
    facts = {
        "run": f"{run.work.name}, {run.plan.strategy}: {where}",
        "step": NOTHING if step_s is None else text("term.run.step.told", ms=number(1e3 * step_s)),
        "throughput": NOTHING
        if step_s is None
        else text("term.run.throughput.told", rate=f"{run.work.batch_size / step_s:,.0f}"),
        "loss": text("term.run.loss.told", **losses),
        "accuracy": NOTHING if accuracy is None else f"{100 * accuracy:.1f} %",
        "sent": text("term.run.sent.told", bytes=in_binary_units(run.plan.bytes_per_step)),
        "moved": text("term.run.moved.told", bytes=in_binary_units(run.moved_bytes or 0)),
        "record": str(run.folder),
    }
    if saved is not None:
        facts["saved"] = str(saved)
    if run.checkpoints:
        facts["checkpoints"] = ", ".join(map(str, run.checkpoints))
    if run.checkpoint_error is not None:
        facts["no_checkpoint"] = translate(str(run.checkpoint_error))
    if idle := without_effect(dict(run.plan.options), run.plan.mesh):
        facts["idle"] = translate(idle)
    if bubble := run.bubble:
        facts["waited"] = translate(str(bubble))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(text(f"term.run.{name}"), fact)
    return table


def _progress(run: Run) -> Progressed:
    history = run.history
    loss = text("term.loss_now", loss=f"{history[-1]['loss']:.3g}") if history else ""
    label = texts.row_label({"strategy": run.plan.strategy, "threads": run.threads})
    return Progressed(run.step, run.steps, run.eta_s, ", ".join(filter(None, (label, loss))))
