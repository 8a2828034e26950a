"""What a user would write with DistributedDataParallel; started by torch's launcher.

    python -m torch.distributed.run --standalone --nproc-per-node 2 ddp_script.py digits-cnn 40

Prints the median seconds of a step on rank 0. BatchNorm is local to each rank, since torch's
synchronized one refuses the CPU.
"""

from __future__ import annotations

import os
import sys
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import workbench as wb


def main() -> None:
    """Train and time."""
    work, steps = wb.workload(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.from_numpy(work.x.compute(scheduler="synchronous"))[rank::size]
    y = torch.from_numpy(work.y.compute(scheduler="synchronous"))[rank::size]
    model = DistributedDataParallel(work.make_model())
    optimizer = work.make_optimizer(list(model.parameters()))
    share = work.batch_size // size
    times = []
    for _ in range(steps):
        start_s = perf_counter()
        index = torch.randint(len(x), (share,))
        optimizer.zero_grad()
        loss = work.loss(model(x[index]), y[index])
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(perf_counter() - start_s)
    if rank == 0:
        print(median(times[3:]))
    dist.barrier()  # gloo aborts a rank whose peer leaves first
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
