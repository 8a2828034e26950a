"""What torch itself ships, on 2 processes over gloo: the peers of our strategies; run by hand.

    python -m torch.distributed.run --standalone --nproc-per-node 2 peer_models.py \
        --peer 1f1b --model residual-mlp --steps 20 --warm-up 3
    python peer_models.py --peer serial --threads 2 --model residual-mlp --steps 20

Rank 0 prints one line of JSON with the seconds of each timed step. Every step draws its samples,
trains on the whole batch (each peer its own part of it) and waits for the loss where that rank
has one. The first steps are compared with one process: a loss that differs goes to stderr.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from workbench.models import DigitsMLP, ResidualMLP

# model: what makes it, the shape of one sample, the default batch
MODELS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int]] = {
    "residual-mlp": (ResidualMLP, (256,), 256),
    "digits-mlp": (DigitsMLP, (1, 32, 32), 64),
}
SAMPLES = 2048
CLASSES = 10
MICRO_BATCHES = 8
CHECKED_STEPS = 3  # losses 2 and 3 depend on the gradients and on the optimizer
TOLERANCE = 1e-4

# Takes the indices of a batch, returns what this rank adds to the loss of the whole batch.
Step = Callable[[Tensor], float]

loss_of = nn.CrossEntropyLoss()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of every peer."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def whole_step(model: nn.Module, x: Tensor, y: Tensor, parts: int, part: int = 0) -> Step:
    """Return a step by autograd on one of ``parts`` slices of the batch."""
    optimizer = sgd(model)

    def step(index: Tensor) -> float:
        mine = index.chunk(parts)[part]
        optimizer.zero_grad()
        loss = loss_of(model(x[mine]), y[mine])
        loss.backward()
        optimizer.step()
        return loss.item() / parts

    return step


def serial(model: nn.Sequential, x: Tensor, y: Tensor, batch: int) -> Step:
    """One process."""
    return whole_step(model, x, y, 1)


def ddp(model: nn.Sequential, x: Tensor, y: Tensor, batch: int) -> Step:
    """Replicas that average gradients."""
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    return whole_step(wrapped, x, y, dist.get_world_size(), dist.get_rank())


def fsdp2(model: nn.Sequential, x: Tensor, y: Tensor, batch: int) -> Step:
    """Replicas whose parameters are sharded: each block by itself, the small rest at the root."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    blocks = [model[1], model[3]] if isinstance(model, DigitsMLP) else list(model)[1:-2]
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no average
    return whole_step(model, x, y, mesh.size(), mesh.get_rank())


def dtensor(model: nn.Sequential, x: Tensor, y: Tensor, batch: int) -> Step:
    """Linear layers in pairs, split by columns then by rows; every rank sees the whole batch."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if isinstance(model, DigitsMLP):  # its last layer stays whole: splitting it is slower
        plan = {"1": ColwiseParallel(), "3": RowwiseParallel()}
    else:
        blocks = range(1, len(model) - 2)
        plan = {f"{number}.up": ColwiseParallel() for number in blocks}
        plan |= {f"{number}.down": RowwiseParallel() for number in blocks}
    parallelize_module(model, mesh, plan)
    step = whole_step(model, x, y, 1)
    return lambda index: step(index) / mesh.size()  # the ranks have the same loss


def pipeline(
    make: type[Schedule1F1B] | type[ScheduleGPipe],
) -> Callable[[nn.Sequential, Tensor, Tensor, int], Step]:
    """Return a peer of two stages that run micro-batches by the schedule of ``make``."""

    def peer(model: nn.Sequential, x: Tensor, y: Tensor, batch: int) -> Step:
        if batch % MICRO_BATCHES or dist.get_world_size() != 2:
            raise SystemExit(f"a pipeline takes 2 ranks and a multiple of {MICRO_BATCHES} samples")
        # Half of the blocks each; DigitsMLP is cut before its second, dearest layer.
        cut = 3 if isinstance(model, DigitsMLP) else 1 + (len(model) - 3) // 2
        first = dist.get_rank() == 0
        mine = nn.Sequential(*(list(model)[:cut] if first else list(model)[cut:]))
        stage = PipelineStage(mine, dist.get_rank(), 2, torch.device("cpu"))
        schedule = make(stage, MICRO_BATCHES, loss_fn=loss_of)
        optimizer = sgd(mine)

        def step(index: Tensor) -> float:
            losses: list[Tensor] = []
            optimizer.zero_grad()
            if first:
                schedule.step(x[index], return_outputs=False)
            else:
                schedule.step(target=y[index], losses=losses, return_outputs=False)
            optimizer.step()
            return 0.0 if first else torch.stack(losses).mean().item()

        return step

    return peer


PEERS: dict[str, Callable[[nn.Sequential, Tensor, Tensor, int], Step]] = {
    "serial": serial,
    "ddp": ddp,
    "dtensor": dtensor,
    "1f1b": pipeline(Schedule1F1B),
    "gpipe": pipeline(ScheduleGPipe),
    "fsdp2": fsdp2,
}


def main() -> None:
    """Train, check and time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before these")
    parser.add_argument("--batch", type=int, help="samples per step over all ranks")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1, help="of serial only")
    asked = parser.parse_args()
    alone = asked.peer == "serial"
    torch.set_num_threads(asked.threads if alone else 1)
    if not alone:
        dist.init_process_group("gloo")
    rank = 0 if alone else dist.get_rank()

    make_model, shape, default_batch = MODELS[asked.model]
    batch = asked.batch or default_batch
    if not alone and batch % dist.get_world_size():
        raise SystemExit(f"a batch of {batch} does not divide into {dist.get_world_size()} ranks")
    torch.manual_seed(0)  # the same model and data on all ranks
    model = make_model()
    x, y = torch.randn(SAMPLES, *shape), torch.randint(CLASSES, (SAMPLES,))
    draws = torch.Generator().manual_seed(1)
    count = asked.warm_up + asked.steps
    first = [torch.randint(SAMPLES, (batch,), generator=draws) for _ in range(CHECKED_STEPS)]
    reference = whole_step(copy.deepcopy(model), x, y, 1)
    expected = [reference(index) for index in first[:count]]
    del reference

    step = PEERS[asked.peer](model, x, y, batch)
    draws.manual_seed(1)
    times = []
    for number in range(count):
        start_s = time.perf_counter()
        loss = step(torch.randint(SAMPLES, (batch,), generator=draws))
        times.append(time.perf_counter() - start_s)
        if number < len(expected):
            total = torch.tensor(loss, dtype=torch.float64)
            if not alone:
                dist.all_reduce(total)
            if rank == 0 and not abs(total.item() - expected[number]) <= TOLERANCE:
                print(
                    f"{asked.peer}, {asked.model}, step {number + 1}: the loss is "
                    f"{total.item():.6f}, of one process {expected[number]:.6f}",
                    file=sys.stderr,
                )
    if rank == 0:
        found = {"peer": asked.peer, "model": asked.model, "step_s": times[asked.warm_up :]}
        print(json.dumps(found), flush=True)
    if not alone:
        dist.barrier()  # gloo aborts a rank whose peer leaves first
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
