"""Time what the engine adds to a step on one rank, beside a plain torch loop; run by hand.

    python tests/benchmarks/engine_overhead.py --repeats 7 [--device cuda] [--profile digits-mlp]

Both see the same batches in the same order, have the same optimizer, and read the loss of every
step. They run in one process with the memory settings of a rank, in blocks of steps by turns, spans
off. Time is from the end of a step to the end of the next, so that nothing between steps is left
out. Prints a Markdown table: the median of the ratios within a turn, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

import workbench as wb
from workbench.cluster.context import RankContext
from workbench.cluster.launcher import rank_environment
from workbench.comm.connect import SoloComm
from workbench.engine import Job, train
from workbench.machine import describe
from workbench.models import ResidualMLP
from workbench.order import Order
from workbench.placement import pieces
from workbench.plan import Plan
from workbench.planning import plan
from workbench.workload import Workload

WARM_UP = 5


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


def engine(work: Workload, planned: Plan, arrays: dict[str, np.ndarray], device: str) -> Callable:
    """Return what runs some steps as a rank does, and gives the seconds of each."""
    payload = work.payload()

    def block(steps: int) -> tuple[list[float], float]:
        comm = SoloComm(device)
        context = RankContext(0, 1, comm, torch.device(device), arrays=arrays)
        rows = train(context, Job(payload, planned, WARM_UP + steps)).rows
        ends = [row["time_s"] for row in rows[WARM_UP - 1 :]]
        return np.diff(ends).tolist(), rows[-1]["loss"]

    return block


def plain(work: Workload, arrays: dict[str, np.ndarray], device: str) -> Callable:
    """Return what runs some steps as a user would write them, and gives the seconds of each."""
    order = Order(work.samples, work.batch_size, work.seed)
    x, y = (torch.from_numpy(arrays[name].copy()) for name in ("x", "y"))

    def block(steps: int) -> tuple[list[float], float]:
        torch.manual_seed(work.seed)
        model = work.make_model().to(device)
        optimizer = work.make_optimizer(list(model.named_parameters()))
        batches = [
            torch.from_numpy(order.rows(step, 1, 0)[0].index) for step in range(WARM_UP + steps)
        ]
        ends, loss = [], Tensor()
        for index in batches:
            inputs, targets = x[index].to(device), y[index].to(device)
            loss = work.loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            last = loss.item()
            ends.append(perf_counter())
        return np.diff(ends[WARM_UP - 1 :]).tolist(), last

    return block


def measure(name: str, strategy: str, steps: int, repeats: int, device: str) -> str:
    """Return the line of one workload."""
    work = workload(name)
    planned = plan(work, strategy)
    arrays = {
        key: np.ascontiguousarray(array[tuple(slice(*run) for run in index)].compute())
        for key, (array, index) in pieces(work, planned, 0).items()
        if key in ("x", "y")
    }
    ways = [engine(work, planned, arrays, device), plain(work, arrays, device)]
    times: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):  # the first turn warms up
        losses = [0.0, 0.0]
        for which in (0, 1) if repeat % 2 else (1, 0):
            taken, losses[which] = ways[which](steps)
            if repeat:
                times[which].append(1e3 * median(taken))
        assert abs(losses[0] - losses[1]) < 1e-3 * abs(losses[1]), losses
    ratios = [100 * (ours / theirs - 1) for ours, theirs in zip(*times, strict=True)]
    return (
        f"| `{name}`, batch {work.batch_size} | `{strategy}` | {median(times[1]):.2f} "
        f"| {median(times[0]):.2f} | {median(ratios):+.1f} % ({min(ratios):+.1f} to "
        f"{max(ratios):+.1f}) |"
    )


def profiled(name: str, steps: int, device: str) -> None:
    """Print where the engine's own time goes."""
    work = workload(name)
    planned = plan(work, "serial")
    arrays = {
        key: array[tuple(slice(*run) for run in index)].compute()
        for key, (array, index) in pieces(work, planned, 0).items()
        if key in ("x", "y")
    }
    block = engine(work, planned, arrays, device)
    with cProfile.Profile() as profile:
        block(steps)
    pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--strategy", default="data=1")
    parser.add_argument("--profile", metavar="WORKLOAD")
    parser.add_argument(
        "workloads", nargs="*", default=["digits-cnn", "digits-mlp", "residual-mlp"]
    )
    asked = parser.parse_args()
    if "WORKBENCH_AS_RANK" not in os.environ:  # memory settings are read when a process begins
        environment = {**rank_environment(os.environ), "WORKBENCH_AS_RANK": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    torch.set_num_threads(asked.threads)
    if asked.profile:
        profiled(asked.profile, asked.steps, asked.device)
        return
    machine = describe()
    print(
        f"{machine['cpu_model']}, {asked.threads} thread, {asked.device}, {machine['versions']}\n"
    )
    print("| workload | strategy | plain loop, ms per step | engine, ms | overhead |")
    print("|---|---|---|---|---|", flush=True)
    for name in asked.workloads:
        line = measure(name, asked.strategy, asked.steps, asked.repeats, asked.device)
        print(line, flush=True)


if __name__ == "__main__":
    main()
