"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from workbench.arguments import MOST_WORKERS
from workbench.errors import PlanError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

steps: Decorator = click.option(
    "--steps", type=click.IntRange(min=1), help="Updates per run. [default: the workload's own]"
)
repeats: Decorator = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Timed runs of each strategy; they take turns.",
)
threads: Decorator = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Torch threads per rank. [default: the cores, shared equally]",
)
workers: Decorator = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Dask workers to start. [default: one for each rank]",
)
device: Decorator = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: CUDA where there is a GPU for each rank, else the CPU.",
)
batch: Decorator = click.option(
    "--batch", type=click.IntRange(min=1), help="Samples per step. [default: the workload's own]"
)
seed: Decorator = click.option(
    "--seed", type=int, help="What all that is drawn follows. [default: the workload's own]"
)


def _choices(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> Any:
    """Return ``NAME=VALUE`` texts as a dictionary."""
    found = {}
    for text in given:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not (name and equals and value):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as spatial_dims=3.")
        found[name] = value
    return found


choices: Decorator = click.option(
    "--option",
    "choices",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_choices,
    help="A choice, such as precision=bf16, compression=powersgd, sync_every=8, spatial_dims=3, "
    "fallback=gather, batch_norm=local, sequence=split.",
)


trace: Decorator = click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what every rank did when to this file, for ui.perfetto.dev.",
)

report: Decorator = click.option(
    "--report", type=click.Path(path_type=Path), help="Write an HTML report to this file, too."
)

price: Decorator = click.option(
    "--price-per-worker-hour",
    type=click.FloatRange(min=0),
    help="What one worker costs for an hour, in any currency, to see what an epoch costs.",
)


def workload_changes(batch: int | None, seed: int | None) -> dict[str, int]:
    """Return what ``--batch`` and ``--seed`` change in a workload of the catalogue."""
    asked = {"batch_size": batch, "seed": seed}
    return {name: value for name, value in asked.items() if value is not None}


def enough_workers(workers: int | None, ranks: int, strategy: str) -> int:
    """Return how many workers to start for ``ranks`` ranks.

    Raises
    ------
    PlanError
        If ``--workers`` asks for fewer than there are ranks, or one machine has too few for them.
    """
    if ranks > MOST_WORKERS:
        raise PlanError(
            f"{strategy} has {ranks} ranks and needs a worker for each, but at most {MOST_WORKERS} "
            f"are started on one machine; choose smaller degrees, or run it on a cluster of your "
            f"own: wb.start(client=...)."
        )
    if workers is not None and workers < ranks:
        raise PlanError(
            f"{strategy} has {ranks} ranks and needs a worker for each, but --workers is "
            f"{workers}; give --workers {ranks}, or leave it out."
        )
    return workers or ranks


def report_path(path: Path) -> Path:
    """Return where a report goes.

    Raises
    ------
    PlanError
        If no file can be written there.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise PlanError(f"The report cannot be written: {path} {why}; give the path of a new file.")
    return path
