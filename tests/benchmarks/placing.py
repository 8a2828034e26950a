"""Placement by hash, and loading to ranks against what Dask alone does. Run by hand:

python tests/benchmarks/placing.py --gigabytes 1 --repeats 5
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import cloudpickle
import dask.array as da
import numpy as np
from distributed import wait
from rank_reads import touch
from torch import nn

import workbench as wb
from workbench.cluster.gang import Gang
from workbench.cluster.lab import Lab
from workbench.distribution import placement
from workbench.placement import Placement

ROW = 4096  # bytes: 1024 numbers


def balance(seeds: int) -> None:
    """Print how even a thousand chunks on ten workers are, and what moves, over many names."""
    print("| scheme | max/mean | moves when one joins | moves when one leaves |\n|---|---|---|---|")
    for scheme in ("rendezvous", "ring", "modulo", "round robin"):
        found = []
        for seed in range(seeds):
            names = [f"{seed}-{n}" for n in range(10)]
            table = placement([f"x/{n}" for n in range(1000)], names, scheme)
            joined = table.moved(table.with_workers([*names, "new"])).share
            left = table.moved(table.with_workers(names[1:])).share
            found.append((table.balance, joined, left))
        columns = list(zip(*found, strict=True))
        cells = [f"{median(c):.3f} ({min(c):.3f}-{max(c):.3f})" for c in columns]
        print(f"| {scheme} | {' | '.join(cells)} |")


def to_ranks(lab: Lab, shares: list[dict[str, object]], number: str) -> float:
    """Start ranks on shares; return when the slowest has read all of its own."""
    gang = Gang(
        lab,
        run_id=f"placing-{number}",
        size=2,
        threads=1,
        device="cpu",
        target=touch,
        job=cloudpickle.dumps(None),
        shares=shares,
        on_message=lambda *_: None,
        on_end=lambda _: None,
    )
    gang.start()
    end = gang.join(120)
    if end.error is not None:
        raise end.error
    return max(end.results)


def ours(lab: Lab, path: Path, y: np.ndarray, number: str) -> tuple[float, float]:
    """Open the file and give ranks their rows; seconds until placed, and until all is read."""
    begun = time.time()
    x = wb.dataset(path)["x"]
    work = wb.Workload(model=nn.Linear(1024, 2), data=(x, y), batch_size=64)
    plan = wb.plan(work, "data=2")
    room = Placement(lab)
    room._check = lambda *_: None  # the look for NaN reads all data, with or without this
    shares = room.shares(work, plan)
    wait([f for share in shares for f in share.values()], timeout=120)
    placed = time.time()
    return placed - begun, to_ranks(lab, shares, number) - begun


def scattered(lab: Lab, path: Path, y: np.ndarray, number: str) -> tuple[float, float]:
    """The same by ``dask.array.from_array`` and ``scatter``: the client reads and sends chunks."""
    begun = time.time()
    x = da.from_array(np.load(path, mmap_mode="r"), chunks=(8192, -1))
    hosts = lab.hosts_for(2)
    shares = []
    for rank, host in enumerate(hosts):
        half = slice(rank * len(x) // 2, (rank + 1) * len(x) // 2)
        blocks = x[half].to_delayed().ravel()
        values = [block.compute(scheduler="sync") for block in blocks]
        futures = lab.client.scatter(values, workers=[host.worker], hash=False)
        whole = da.concatenate(
            [
                da.from_delayed(future, v.shape, v.dtype)
                for future, v in zip(futures, values, strict=True)
            ]
        )
        labels = da.from_array(y[half], chunks=-1)
        placed = lab.place([whole, labels], [host, host])
        shares.append({"x": placed[0], "y": placed[1]})
    wait([f for share in shares for f in share.values()], timeout=120)
    placed_s = time.time()
    return placed_s - begun, to_ranks(lab, shares, number) - begun


def loading(gigabytes: float, repeats: int) -> None:
    """Print what it takes to give two ranks the halves of a file that is in the page cache."""
    rows = int(gigabytes * 2**30 / ROW) // 64 * 64
    with tempfile.TemporaryDirectory() as folder, wb.start(workers=2, threads=1) as lab:
        path = Path(folder) / "x.npy"
        array = np.lib.format.open_memmap(path, "w+", "f4", (rows, ROW // 4))
        for start in range(0, rows, 8192):
            array[start : start + 8192] = start
        del array
        y = np.arange(rows) % 2
        path.read_bytes()  # warm for both
        ours(lab, path, y, "warm")
        found: dict[str, list[tuple[float, float]]] = {"ours": [], "scattered": []}
        for repeat in range(repeats):  # interleaved
            found["ours"].append(ours(lab, path, y, f"o{repeat}"))
            found["scattered"].append(scattered(lab, path, y, f"s{repeat}"))
    print(f"\n{rows * ROW / 2**30:.2f} GiB of .npy to 2 ranks, page cache warm, s")
    print("| line | placed | every byte read by its rank |\n|---|---|---|")
    for name, times in found.items():
        cells = [f"{median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in zip(*times, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    pairs = zip(found["scattered"], found["ours"], strict=True)
    ratios = [[s / o for s, o in zip(*pair, strict=True)] for pair in pairs]
    cells = [f"{median(r):.1f}× ({min(r):.1f}-{max(r):.1f})" for r in zip(*ratios, strict=True)]
    print(f"| faster by | {' | '.join(cells)} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    balance(options.seeds)
    loading(options.gigabytes, options.repeats)


if __name__ == "__main__":
    main()
