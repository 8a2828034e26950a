"""One rank of the peer of checkpoint.py: torch.distributed.checkpoint over gloo.

Holds parameters and Adam's state as DTensors, cut in rows as FSDP2 does. For each path that
comes on its standard input it saves to there and loads from there, and prints the seconds of both.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard


def state(layers: int, width: int) -> dict[str, torch.Tensor]:
    """Return this rank's shares of weights, biases and moments."""
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for name, shape in (("weight", (width // 2, width)), ("bias", (width // 2,))):
            for kind in ("model", "exp_avg", "exp_avg_sq"):
                key = f"{kind}.{layer}.{name}"
                found[key] = DTensor.from_local(torch.randn(shape), mesh, [Shard(0)])
            found[f"step.{layer}.{name}"] = torch.tensor(3.0)
    return found


def main() -> None:
    """Save and load until the input ends."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    held = state(int(sys.argv[1]), int(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        path = Path(line.strip())
        dist.barrier()
        start_s = time.perf_counter()
        dcp.save(held, checkpoint_id=path)
        dist.barrier()
        saved_s = time.perf_counter()
        dcp.load(held, checkpoint_id=path)
        dist.barrier()
        loaded_s = time.perf_counter()
        if dist.get_rank() == 0:
            shutil.rmtree(path)
        print(saved_s - start_s, loaded_s - saved_s, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
