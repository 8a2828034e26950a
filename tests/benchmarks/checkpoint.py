"""Time saving and loading a run against torch.distributed.checkpoint; run by hand.

    python tests/benchmarks/checkpoint.py --repeats 7

400 MB of parameters and Adam's state, cut in rows over 2 ranks. Every repeat saves and loads with
both in turn, in the same folder, and a ratio is taken within a repeat. Both wait until everything
is on the disk; what is loaded comes from the page cache. Ours also hashes all that it writes
and verifies all that it reads. On both sides the first time is left out: it loads code, and ours
makes the plan that later runs and loads of the same workload have in common, whose time is printed
too. Prints a Markdown table of medians with minimum and maximum.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

import workbench as wb
from workbench.machine import describe

LAYERS, WIDTH = 32, 1024
LINES = ("save", "load", "save + load")


def perceptron() -> nn.Module:
    """Return 33.6 million parameters."""
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


@contextmanager
def peers():
    """Start the two ranks of the peer; they wait on their standard input."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("dcp_script.py")
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(LAYERS), str(WIDTH)],
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            assert process.stdout.readline().strip() == "ready"
        yield started
    finally:
        for process in started:
            process.stdin.close()
            process.wait(30)


def theirs(processes, path: Path) -> list[float]:
    """Return the seconds that the slower rank took to save and to load."""
    for process in processes:
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
    both = [[float(text) for text in p.stdout.readline().split()] for p in processes]
    return [max(times) for times in zip(*both, strict=True)]


def ours(run, work, path: Path) -> list[float]:
    """Return the seconds that saving and loading took."""
    start_s = time.perf_counter()
    wb.save(run, path)
    saved_s = time.perf_counter()
    loaded = wb.load(path, work=work)
    loaded_s = time.perf_counter()
    assert loaded.step == run.step
    del loaded
    shutil.rmtree(path)
    return [saved_s - start_s, loaded_s - saved_s]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", default=None)
    asked = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu_model']}, {machine['cores']} cores, {machine['versions']}")
    x = np.zeros((4, WIDTH), dtype=np.float32)
    work = wb.Workload(
        model=perceptron(),
        data=(x, x),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.Adam, lr=1e-4),
        batch_size=4,
    )
    times: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    with (
        wb.start(workers=2, threads=1) as lab,
        tempfile.TemporaryDirectory(dir=asked.folder) as name,
        peers() as processes,
    ):
        path = Path(name, "checkpoint")
        run = wb.run(work, "sharded=2", stage=3, steps=3, folder=name, lab=lab).wait(120)
        first = ours(run, work.with_(), path)
        ours(run, work, path), theirs(processes, path)
        print(f"first load of a workload, with its plan: {first[1]:.2f} s")
        for _ in range(asked.repeats):
            times["ours"].append(ours(run, work, path))
            times["theirs"].append(theirs(processes, path))
    for found in times.values():
        for row in found:
            row.append(sum(row))
    print("\n| | workbench, s | torch.distributed.checkpoint, s | faster by |\n|---|---|---|---|")
    for number, line in enumerate(LINES):
        one, other = ([row[number] for row in times[who]] for who in ("ours", "theirs"))
        ratios = [b / a for a, b in zip(one, other, strict=True)]
        cells = [f"{median(all_):.2f} ({min(all_):.2f}-{max(all_):.2f})" for all_ in (one, other)]
        spread = f"{median(ratios):.2f}× ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"| {line} | {cells[0]} | {cells[1]} | {spread} |")


if __name__ == "__main__":
    main()
