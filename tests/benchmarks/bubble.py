"""Measure how much the ranks of a pipeline wait, beside theory; run by hand.

    python tests/benchmarks/bubble.py --steps 20

Two stages of the residual perceptron on 2 processes with 1 thread each, under every schedule.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile

from model_parallel import workload

import workbench as wb
from workbench.schedules import SCHEDULES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batches", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--balance", choices=("counted", "measured"), default="counted")
    asked = parser.parse_args()
    work = workload("residual-mlp")
    print("| schedule | micro-batches | ms per step | measured | in theory | with equal stages |")
    print("|---|---|---|---|---|---|")
    with wb.start(workers=2, threads=1), tempfile.TemporaryDirectory() as folder:
        for schedule, accumulate in ((s, m) for s in SCHEDULES for m in asked.micro_batches):
            run = wb.run(
                work,
                "pipeline=2",
                steps=asked.steps,
                folder=folder,
                schedule=schedule,
                accumulate=accumulate,
                balance=asked.balance,
            ).wait(300)
            found, step_ms = run.bubble, 1e3 * (run.step_s or float("nan"))
            assert found is not None
            shares = (found.measured, found.theory, found.equal_stages)
            cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
            print(f"| `{schedule}` | {accumulate} | {step_ms:.1f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
