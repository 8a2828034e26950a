"""What ranks do in the tests: an importable module, as targets must be."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

import numpy as np
import torch

from workbench.cluster.context import RankContext

FOREVER_S = 600.0


def greet(ctx: RankContext, job: Any) -> dict[str, Any]:
    for number in range(5):
        ctx.send("number", (ctx.rank, number))
    return {"rank": ctx.rank, "size": ctx.size, "job": job}


def add(ctx: RankContext, job: Any) -> list[float]:
    return ctx.comm.all_reduce(torch.full((3,), float(ctx.rank + 1))).tolist()


def look(ctx: RankContext, job: Any) -> dict[str, Any]:
    """Tell what the process is like."""
    loaded = set(sys.modules)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return {
        "loads_for_an_optimizer": set(sys.modules) - loaded,
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "environment": dict(os.environ),
        "device": str(ctx.device),
        "cuda": torch.cuda.is_initialized(),
    }


def read(ctx: RankContext, job: Any) -> dict[str, Any]:
    """Tell what the arrays are, and keep twice each."""
    for name, array in ctx.arrays.items():
        ctx.keep(f"twice {name}", array * 2)
    return {
        name: (array.shape, array.dtype.str, float(array.sum()), array.flags.writeable)
        for name, array in ctx.arrays.items()
    }


def obey(ctx: RankContext, job: Any) -> list[str]:
    """Collect commands until told to stop."""
    told: list[str] = []
    ctx.send("ready", ctx.rank)
    while "stop" not in told:
        told += ctx.commands()
        time.sleep(0.01)
    return told


def wait(ctx: RankContext, job: Any) -> None:
    """Sleep as ranks between steps do, at step 4."""
    ctx.progress(4)
    print("waiting", flush=True)
    ctx.send("ready", ctx.rank)
    time.sleep(FOREVER_S)


def hold_the_gil(ctx: RankContext, job: Any) -> None:
    ctx.send("ready", ctx.rank)
    ctypes.PyDLL(None).sleep(int(FOREVER_S))


def wait_for_peers(ctx: RankContext, job: Any) -> None:
    """Rank 0 and all but the last are in a collective that the last never joins."""
    ctx.progress(9)
    ctx.send("ready", ctx.rank)
    if ctx.rank == ctx.size - 1:
        time.sleep(FOREVER_S)
    ctx.comm.all_reduce(torch.ones(1000))


def multiply(ctx: RankContext, job: Any) -> None:
    """Compute without end, as in a forward pass."""
    x = torch.ones(200, 200)
    ctx.send("ready", ctx.rank)
    while True:
        x = torch.tanh(x @ x)


def end_badly(ctx: RankContext, job: str) -> None:
    """Rank 1 ends in the way ``job`` says; the others are in a collective."""
    ctx.progress(3)
    if ctx.rank != 1:
        ctx.comm.barrier()
    print("this is the end", flush=True)
    if job == "raise":
        raise ValueError("a bad batch")
    if job == "exit":
        sys.exit(3)
    if job == "_exit":
        os._exit(4)
    if job == "segfault":
        ctypes.string_at(0)
    if job == "abort":
        os.abort()
    if job == "unpicklable":
        ctx.send("module", sys)


def leave_a_child(ctx: RankContext, job: Any) -> int:
    """Start a process, tell of it, and end badly or wait."""
    child = os.fork()
    if child == 0:
        time.sleep(FOREVER_S)
    ctx.send("child", child)
    time.sleep(FOREVER_S)
    return child


def return_much(ctx: RankContext, job: int) -> np.ndarray:
    return np.full(job, ctx.rank, dtype="u1")


def return_a_module(ctx: RankContext, job: Any) -> Any:
    return (x for x in ())
