"""``workbench verify``: prove that a strategy computes what serial does."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from workbench.cli import options
from workbench.cli.figures import NOTHING
from workbench.cli.terminal import Terminal, figures_command
from workbench.errors import PlanError, RunError
from workbench.ui.language import text, translate

if TYPE_CHECKING:
    from workbench.verify import Proof


@click.command(short_help="Prove that a strategy computes what serial does.")
@click.argument("workload")
@click.option("--strategy", default="data=2", show_default=True, help="What to prove.")
@options.batch
@options.seed
@options.choices
@figures_command
def verify(
    workload: str,
    *,
    terminal: Terminal,
    strategy: str,
    batch: int | None,
    seed: int | None,
    choices: dict[str, Any],
) -> None:
    """Compare one pass of WORKLOAD under a strategy with the serial one, in float64.

    Forward and backward, on the first batch, with ranks as threads of this process: no cluster is
    started. Fails if any output, gradient or buffer differs by more than rounding.
    """
    from workbench.verify import verify_workload
    from workbench.workload import workload as catalogued

    work = catalogued(workload, **options.workload_changes(batch, seed))
    proof = verify_workload(work, strategy, **choices)
    if proof.refusal is not None:
        raise PlanError(proof.refusal)
    terminal.figures(
        {
            "workload": work.name,
            "batch_size": work.batch_size,
            **asdict(proof),
            "max_difference": proof.max_difference,
            "same_result": proof.same_result,
        },
        proof_table(proof),
    )
    if not proof.same_result:
        raise RunError(str(proof))
    terminal.say(Text(translate(str(proof)), "green"))


def proof_table(proof: Proof) -> Table:
    """Return the largest difference of each kind of array."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column(text("term.proof", strategy=proof.strategy))
    table.add_column(text("term.difference"), justify="right")
    for kind in ("outputs", "input_gradients", "parameter_gradients", "buffers"):
        difference = getattr(proof, kind)
        told = NOTHING if difference is None else f"{difference:.1e}"
        table.add_row(text(f"term.proof.{kind}"), told)
    return table
