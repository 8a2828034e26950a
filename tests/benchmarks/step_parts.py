"""Say which part of a step is none of its parts; run by hand.

    python tests/benchmarks/step_parts.py --repeats 3

*Why this speed?* splits the time from the end of a step to the end of the next into computing,
communication, waiting, the optimizer and loading. What is left is told as overhead, and is to be a
tenth of the step at most.
Prints a Markdown table of medians with minimum and maximum over the repeats.
"""

from __future__ import annotations

import argparse
import tempfile
from statistics import median

import workbench as wb
from workbench.machine import describe

CASES = {
    "digits-cnn": ("data=2", "spatial=2", "channel=2", "sharded=2"),
    "digits-mlp": ("data=2", "tensor=2", "pipeline=2", "sharded=2"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}\n")
    print("| workload | strategy | ms per step | overhead |\n|---|---|---|---|")
    with wb.start(workers=2, threads=1), tempfile.TemporaryDirectory() as folder:
        for name, strategies in CASES.items():
            parts: dict[str, list[float]] = {}
            steps: dict[str, list[float]] = {}
            for _ in range(asked.repeats):
                work = wb.workload(name)
                done = wb.compare(
                    work, strategies, steps=asked.steps, repeats=1, threads=1, folder=folder
                ).wait(600)
                for row in done.rows:
                    label = f"{row['strategy']}, {row['ranks']} × {row['threads']}"
                    parts.setdefault(label, []).append(100 * row["overhead_share"])
                    steps.setdefault(label, []).append(1e3 * row["step_s"])
            for label, found in parts.items():
                print(
                    f"| `{name}` | {label} | {median(steps[label]):.1f} | {median(found):.1f} % "
                    f"({min(found):.1f}-{max(found):.1f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
