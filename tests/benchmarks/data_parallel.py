"""Time data parallelism against one process and against DistributedDataParallel; run by hand.

    python tests/benchmarks/data_parallel.py --repeats 5

Every repeat runs all lines in turn, and a ratio is taken within a repeat: a machine drifts. Prints
a Markdown table of medians with minimum and maximum.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import workbench as wb
from workbench.machine import describe

LINES = (
    ("1 process × 1 thread", "serial", 1),
    ("1 process × 2 threads", "serial", 2),
    ("data=2, 1 thread per rank", "data=2", 1),
)
SUBJECT = LINES[-1][0]
DDP = "DistributedDataParallel, gloo, 2 × 1 thread"
SPANS = "data=2 with spans recorded and shown"


def ddp_step_s(name: str, steps: int) -> float:
    """Return the median seconds of a step of the script beside this file."""
    script = Path(__file__).with_name("ddp_script.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(script), name, str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return float(done.stdout.split()[-1])


def measure(name: str, steps: int, repeats: int, folder: str) -> dict[str, list[float]]:
    """Return the seconds of a step, one number per repeat, for every line."""
    work = wb.workload(name)
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for label, strategy, threads in LINES:
            run = wb.run(
                work, strategy, steps=steps, threads=threads, spans=False, folder=folder
            ).wait(300)
            times.setdefault(label, []).append(run.step_s or float("nan"))
        run = wb.run(work, "data=2", steps=steps, threads=1, folder=folder).wait(300)
        times.setdefault(SPANS, []).append(run.step_s or float("nan"))
        times.setdefault(DDP, []).append(ddp_step_s(name, steps))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("workloads", nargs="*", default=["digits-cnn", "digits-mlp"])
    asked = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}")
    with wb.start(workers=2, threads=1), tempfile.TemporaryDirectory() as folder:
        for name in asked.workloads:
            times = measure(name, asked.steps, asked.repeats, folder)
            print(f"\n{name}, batch {wb.workload(name).batch_size}, {asked.repeats} repeats\n")
            print("| line | ms per step, median (min-max) | data=2 is faster by (min-max) |")
            print("|---|---|---|")
            for label, found in times.items():
                ratios = [t / s for t, s in zip(found, times[SUBJECT], strict=True)]
                print(
                    f"| {label} | {1e3 * median(found):.1f} "
                    f"({1e3 * min(found):.1f}-{1e3 * max(found):.1f}) "
                    f"| {median(ratios):.2f}× ({min(ratios):.2f}-{max(ratios):.2f}) |"
                )


if __name__ == "__main__":
    main()
