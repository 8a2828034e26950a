"""Time a convolution network cut in space against one process; run by hand.

    python tests/benchmarks/spatial.py --repeats 5

Every repeat runs all lines in turn, and a ratio is taken within a repeat: a machine drifts. Prints
Markdown tables of medians with minimum and maximum: training photo-denoise, its forward pass by
``dask.array.map_overlap``, and the memory that one pass needs on each rank.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter

import dask.array as da
import numpy as np
import torch

import workbench as wb
from workbench.machine import describe

LINES = (
    ("1 process × 1 thread", "serial", 1),
    ("1 process × 2 threads", "serial", 2),
    ("spatial=1, 1 thread", "spatial=1", 1),
    ("spatial=2, 1 thread per rank", "spatial=2", 1),
)
SUBJECT = LINES[-1][0]
OVERLAP = 3  # rows that three 3 × 3 convolutions reach


def training(repeats: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds of a training step, one number per repeat, for every line."""
    work = wb.workload("photo-denoise")
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for label, strategy, threads in LINES:
                run = wb.run(
                    work, strategy, steps=steps, threads=threads, spans=False, folder=folder
                ).wait(300)
                times.setdefault(label, []).append(run.step_s or float("nan"))
    return times


def forward_by_map_overlap(side: int) -> Callable[[], np.ndarray]:
    """Return the network over one image in two chunks, as Dask users write it today."""
    work = wb.workload("photo-denoise")
    model = work.make_model().eval()
    image = work.x[:1].compute()

    def tile(block: np.ndarray) -> np.ndarray:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return model(torch.from_numpy(block)).numpy()

    def run() -> np.ndarray:
        height = image.shape[2]
        chunks = (1, 3, (height - height // 2, height // 2), image.shape[3])
        array = da.from_array(image, chunks=chunks)
        lazy = array.map_overlap(tile, depth={2: side}, boundary=0, dtype=image.dtype)
        found: np.ndarray = lazy.compute()
        return found

    return run


def timed(work: Callable[[], object], times: int = 20) -> float:
    """Return the median seconds of ``work()``."""
    found = []
    for _ in range(times):
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return median(found[2:])


def table(times: dict[str, list[float]], subject: str) -> None:
    """Print one line per entry: median, and how much faster the subject is."""
    print("| line | ms, median (min-max) | subject is faster by (min-max) |")
    print("|---|---|---|")
    for label, found in times.items():
        ratios = [t / s for t, s in zip(found, times[subject], strict=True)]
        print(
            f"| {label} | {1e3 * median(found):.1f} ({1e3 * min(found):.1f}-{1e3 * max(found):.1f})"
            f" | {median(ratios):.2f}× ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}")
    with wb.start(workers=2, threads=1) as lab:
        print("\nTraining photo-denoise, one image of 427 × 640 a step\n")
        table(training(asked.repeats, asked.steps), SUBJECT)
        print(f"\nForward only, on the same two workers ({lab.client.scheduler.address[:3]})\n")
        table(
            {"map_overlap": [timed(forward_by_map_overlap(OVERLAP)) for _ in range(3)]},
            "map_overlap",
        )


if __name__ == "__main__":
    main()
