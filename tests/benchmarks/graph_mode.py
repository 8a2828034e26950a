"""Graph mode against what people write by hand. Prints medians over repeats with their spread.

    python tests/benchmarks/graph_mode.py data      10,000 small images in chunks of 50
    python tests/benchmarks/graph_mode.py tiles     one image, against tiles by hand in one process
    python tests/benchmarks/graph_mode.py memory    12,000 x 12,000 pixels from Zarr to Zarr

Both sides use two cores: two Dask workers with one torch thread each, and one process with two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
from distributed import wait
from torch import nn

import workbench as wb
from workbench.arrays import explain

sys.path.insert(0, str(Path(__file__).parents[1]))
from chunked import UNet


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers, for 28 x 28 pixels in grey."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class OnBlock:
    """What ``x.map_blocks(model)`` takes: a function of numpy arrays around the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, block: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.from_numpy(np.array(block))).numpy()


def report(name: str, seconds: list[float]) -> float:
    middle = statistics.median(seconds)
    print(f"{name}: median {middle:.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s", flush=True)
    return middle


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def data(repeats: int) -> None:
    """Samples in chunks, kept by the workers: both ways, one after the other, several times."""
    torch.manual_seed(0)
    model = SmallCNN().eval()
    with wb.start(workers=2, threads=1):
        source = da.random.default_rng(0)
        x = source.standard_normal((10_000, 1, 28, 28), chunks=(50, 1, 28, 28), dtype="float32")
        x = x.persist()
        wait(x)
        kept: dict[str, Any] = {}

        def by_blocks() -> None:
            chunks = (x.chunks[0], (10,))
            y = x.map_blocks(OnBlock(model), drop_axis=(2, 3), chunks=chunks, dtype="float32")
            kept["blocks"] = y.compute()

        def by_apply() -> None:
            kept["apply"] = wb.apply(model, x).compute()

        by_blocks(), by_apply()
        times = [(timed(by_blocks), timed(by_apply)) for _ in range(repeats)]
        blocks = report("x.map_blocks(model)", [t for t, _ in times])
        own = report("wb.apply(model, x)", [t for _, t in times])
        gap = np.abs(kept["blocks"] - kept["apply"]).max()
        print(f"ratio {blocks / own:.2f}; largest difference {gap:.1e}")
        print(explain(model, x))


def by_hand(model: nn.Module, x: np.ndarray, y: np.ndarray, tile: int, halo: int) -> None:
    """Tile an image as people do: every tile with the same overlap, the middle kept."""
    height, width = x.shape[2:]
    with torch.inference_mode():
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                low, first = max(0, top - halo), max(0, left - halo)
                bottom, right = min(height, top + tile), min(width, left + tile)
                part = x[:, :, low : bottom + halo, first : right + halo]
                out = model(torch.from_numpy(np.ascontiguousarray(part))).numpy()
                here = out[:, :, top - low :, left - first :]
                y[:, :, top:bottom, left:right] = here[:, :, : bottom - top, : right - left]


def tiles(repeats: int, size: int, tile: int) -> None:
    """One image in memory, out of the workers' chunks, against one process with two threads."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = UNet(16).eval()
    image = np.random.default_rng(0).standard_normal((1, 1, size, size), dtype=np.float32)
    made = np.empty((1, 2, size, size), np.float32)
    with wb.start(workers=2, threads=1):
        x = da.from_array(image, chunks=(1, 1, tile, tile)).persist()
        wait(x)
        found = explain(model, x)
        print(found)
        halo = max(field.size for field in found.field) // 2 + 4
        halo += -halo % 4  # so that tiles begin where pooling does

        def own() -> None:
            y = wb.apply(model, x).persist()
            wait(y)

        own(), by_hand(model, image, made, tile, halo)
        times = [
            (timed(own), timed(lambda: by_hand(model, image, made, tile, halo)))
            for _ in range(repeats)
        ]
        mine = report("wb.apply, 2 workers x 1 thread", [t for t, _ in times])
        hand = report(f"by hand, halo {halo}, 1 process x 2 threads", [t for _, t in times])
        gap = np.abs(wb.apply(model, x).compute() - made).max()
        print(f"ratio {hand / mine:.2f}; largest difference {gap:.1e}")


def memory(size: int, tile: int) -> None:
    """From Zarr to Zarr, and the most memory that a worker ever had."""
    torch.manual_seed(0)
    model = UNet(8).eval()
    with tempfile.TemporaryDirectory() as folder, wb.start(workers=2, threads=1) as lab:
        source = da.random.default_rng(0)
        shape, chunks = (1, 1, size, size), (1, 1, tile, tile)
        source.standard_normal(shape, chunks=chunks, dtype="float32").to_zarr(f"{folder}/x.zarr")
        x = da.from_zarr(f"{folder}/x.zarr")
        most: dict[str, int] = {}
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                for name, worker in lab.client.scheduler_info(n_workers=-1)["workers"].items():
                    most[name] = max(most.get(name, 0), worker["metrics"]["memory"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds = timed(lambda: wb.apply(model, x).to_zarr(f"{folder}/y.zarr"))
        done.set()
        watcher.join()
        print(f"{size} x {size}: {seconds:.1f} s")
        print("peak memory of workers, MiB:", [n // 2**20 for n in most.values()])
        middle = size // 2 // 4 * 4
        crop, around = 256, 128
        outer = slice(middle - around, middle + crop + around)
        part = np.asarray(x[:, :, outer, outer])
        with torch.inference_mode():
            whole = model(torch.from_numpy(part)).numpy()
        y = da.from_zarr(f"{folder}/y.zarr")
        here, there = slice(middle, middle + crop), slice(around, around + crop)
        gap = np.abs(np.asarray(y[:, :, here, here]) - whole[:, :, there, there]).max()
        print(f"largest difference to the untiled model on a crop: {gap:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=("data", "tiles", "memory"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int)
    parser.add_argument("--tile", type=int)
    asked = parser.parse_args()
    if asked.figure == "data":
        data(asked.repeats)
    elif asked.figure == "tiles":
        tiles(asked.repeats, asked.size or 2048, asked.tile or 512)
    else:
        memory(asked.size or 12_000, asked.tile or 1024)
