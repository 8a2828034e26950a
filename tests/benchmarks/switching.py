"""Time the switch of strategy with the weights kept, for every model of the catalogue; by hand.

    python tests/benchmarks/switching.py --repeats 5

A run has ended on a warm cluster; timed is from ``wb.run(work, other, start=it)`` to the end of its
first step. It was one of ``data=2``, or of ``spatial=2`` where a batch is one image. Prints a
Markdown table of medians with minimum and maximum.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from statistics import median

import workbench as wb
from workbench.catalogue import CATALOGUE
from workbench.errors import PlanError
from workbench.machine import describe

OTHERS = ("tensor=2", "pipeline=2", "sharded=2", "spatial=2", "channel=2")
LIMIT_S = 300.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}\n")
    print("| workload | from | to | seconds to the end of its first step |\n|---|---|---|---|")
    with wb.start(workers=2, threads=1), tempfile.TemporaryDirectory() as folder:
        for name in CATALOGUE:
            work = wb.workload(name)
            first = "data=2" if work.batch_size > 1 else "spatial=2"
            begun = wb.run(work, first, steps=2, folder=folder).wait(LIMIT_S)
            for other in OTHERS:
                try:
                    wb.plan(work, other)
                except PlanError:
                    continue  # this model cannot be cut so
                if other == first:
                    continue
                took_s = []
                for _ in range(asked.repeats):
                    began_s = time.perf_counter()
                    run = wb.run(work, other, steps=1, start=begun, folder=folder)
                    while not run.step and run.status not in ("failed", "stopped"):
                        time.sleep(0.005)
                    took_s.append(time.perf_counter() - began_s)
                    run.wait(LIMIT_S)
                print(
                    f"| `{name}` | `{first}` | `{other}` | {median(took_s):.2f} "
                    f"({min(took_s):.2f}-{max(took_s):.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
