"""Time every way to share parameters against one process and against torch's own; run by hand.

    python tests/benchmarks/model_parallel.py --repeats 5

Every repeat runs all lines in turn, and a ratio is taken within a repeat: a machine drifts. All
lines use 2 processes with 1 thread each, but for those of one process. Prints Markdown tables of
medians with minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import workbench as wb
from workbench.machine import describe
from workbench.models import ResidualMLP
from workbench.workload import Workload

ONE, TWO = "1 process × 1 thread", "1 process × 2 threads"
OURS: dict[str, tuple[str, int, dict[str, Any]]] = {
    ONE: ("serial", 1, {}),
    TWO: ("serial", 2, {}),
    "`data=2`": ("data=2", 1, {}),
    "`tensor=2`": ("tensor=2", 1, {}),
    "`sharded=2`, stage 1": ("sharded=2", 1, {"stage": 1}),
    "`sharded=2`, stage 3": ("sharded=2", 1, {"stage": 3}),
    "`pipeline=2`, 1F1B, 8 micro-batches": ("pipeline=2", 1, {"accumulate": 8}),
    "`pipeline=2`, GPipe, 8 micro-batches": (
        "pipeline=2",
        1,
        {"accumulate": 8, "schedule": "gpipe"},
    ),
    "`pipeline=2`, ZB-H1, 8 micro-batches": (
        "pipeline=2",
        1,
        {"accumulate": 8, "schedule": "zb-h1"},
    ),
}
PEERS = {
    "ddp": ("DistributedDataParallel", "`data=2`"),
    "dtensor": ("DTensor, `parallelize_module`", "`tensor=2`"),
    "1f1b": ("torch's 1F1B, 8 micro-batches", "`pipeline=2`, 1F1B, 8 micro-batches"),
    "gpipe": ("torch's GPipe, 8 micro-batches", "`pipeline=2`, GPipe, 8 micro-batches"),
    "fsdp2": ("FSDP2, `fully_shard`", "`sharded=2`, stage 3"),
}


def workload(name: str) -> Workload:
    """Return a model of the catalogue, or the residual perceptron on random numbers."""
    if name != "residual-mlp":
        return wb.workload(name)
    source = np.random.default_rng(0)
    return Workload(
        name=name,
        model=ResidualMLP,
        data=(source.standard_normal((1024, 256)), source.integers(0, 10, 1024)),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        batch_size=256,
    )


def peer_ms(peer: str, name: str, steps: int) -> float:
    """Return the median milliseconds of a step of one of torch's own."""
    script = Path(__file__).with_name("peer_models.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    asked = ["--peer", peer, "--model", name, "--steps", str(steps)]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(script), *asked],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return 1e3 * median(json.loads(done.stdout.strip().splitlines()[-1])["step_s"])


def measure(name: str, steps: int, repeats: int, folder: str) -> dict[str, list[float]]:
    """Return the milliseconds of a step, one number per repeat, for every line."""
    work = workload(name)
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for label, (strategy, threads, options) in OURS.items():
            run = wb.run(
                work, strategy, steps=steps, threads=threads, spans=False, folder=folder, **options
            ).wait(300)
            times.setdefault(label, []).append(1e3 * (run.step_s or float("nan")))
        for peer, (label, _) in PEERS.items():
            times.setdefault(label, []).append(peer_ms(peer, name, steps))
    return times


def table(times: dict[str, list[float]]) -> list[str]:
    """Return the lines of a Markdown table."""
    rivals = dict(PEERS.values())
    lines = [
        f"| line | ms per step | against {ONE} | against {TWO} | ours is faster by |",
        "|---|---|---|---|---|",
    ]

    def ratios(of: str, by: str) -> str:
        found = [a / b for a, b in zip(times[of], times[by], strict=True)]
        return f"{median(found):.2f}× ({min(found):.2f}-{max(found):.2f})"

    for label, found in times.items():
        spread = f"{median(found):.1f} ({min(found):.1f}-{max(found):.1f})"
        ours = ratios(label, rivals[label]) if label in rivals else ""
        lines.append(
            f"| {label} | {spread} | {ratios(ONE, label)} | {ratios(TWO, label)} | {ours} |"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("workloads", nargs="*", default=["residual-mlp", "digits-mlp"])
    asked = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}")
    with wb.start(workers=2, threads=1), tempfile.TemporaryDirectory() as folder:
        for name in asked.workloads:
            times = measure(name, asked.steps, asked.repeats, folder)
            print(f"\n{name}, batch {workload(name).batch_size}, {asked.repeats} repeats\n")
            print("\n".join(table(times)), flush=True)


if __name__ == "__main__":
    main()
