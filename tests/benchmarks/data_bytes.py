"""Time, bytes and loss of replicas that send less than whole gradients; run by hand.

    python tests/benchmarks/data_bytes.py --repeats 3

Every repeat runs all lines in turn, with the same batches. 2 processes with 1 thread each. Prints a
Markdown table: median milliseconds of a step (minimum and maximum over repeats), bytes that a rank
sends in a step (mean over the run, counted), and what has been learned, which is the same in every
repeat.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from statistics import mean, median
from typing import Any

import workbench as wb
from workbench.machine import describe

LINES: dict[str, dict[str, Any]] = {
    "whole gradients": {},
    '`compression="bf16"`': {"compression": "bf16"},
    '`compression="powersgd"`, rank 4': {"compression": "powersgd"},
    '`compression="topk"`, 1 %': {"compression": "topk"},
    "`sync_every=8`": {"sync_every": 8},
    '`sync_every=8`, `outer="nesterov"`': {"sync_every": 8, "outer": "nesterov"},
    '`precision="bf16"`': {"precision": "bf16"},
}
LAST = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--workload", default="digits-mlp")
    parser.add_argument("--strategy", default="data=2")
    asked = parser.parse_args()
    work = wb.workload(asked.workload)
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}")
    times: dict[str, list[float]] = {}
    learned: dict[str, tuple[float, float, float]] = {}
    with wb.start(workers=2, threads=1), tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.repeats):
            for label, options in LINES.items():
                run = wb.run(
                    work, asked.strategy, steps=asked.steps, spans=False, folder=folder, **options
                ).wait(300)
                # A step that averages is another one than those before: the mean tells of both.
                rows = run.history
                times.setdefault(label, []).append(1e3 * mean(r["step_s"] for r in rows[5:]))
                print(f"{label}: {times[label][-1]:.1f} ms", file=sys.stderr, flush=True)
                learned[label] = (
                    mean(r["sent_bytes"] for r in rows),
                    mean(r["loss"] for r in rows[-LAST:]),
                    run.accuracy or 0.0,
                )
    print(f"\n{work.name}, {asked.strategy}, batch {work.batch_size}, {asked.steps} steps\n")
    print(f"| line | ms per step | sent per step | loss, last {LAST} steps | test accuracy |")
    print("|---|---|---|---|---|")
    for label, found in times.items():
        sent, loss, accuracy = learned[label]
        spread = f"{median(found):.1f} ({min(found):.1f}-{max(found):.1f})"
        print(f"| {label} | {spread} | {sent / 2**20:.2f} MiB | {loss:.4f} | {accuracy:.1%} |")


if __name__ == "__main__":
    main()
