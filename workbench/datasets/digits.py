"""The 1,797 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from workbench.datasets.dataset import Dataset, lazy, split_indices, split_sizes

SAMPLES = 1797
SIDE = 32


def digits(test_share: float = 0.2, seed: int = 0) -> Dataset:
    """Return the digits as images (N, 1, 32, 32), float32 0..1, with labels 0..9, int64.

    The originals have 8 x 8 pixels and are resized bilinearly.

    Raises
    ------
    PlanError
        if ``test_share`` leaves no sample for training or for testing.
    """
    train, test = split_sizes(SAMPLES, test_share)
    facts = {"seed": seed, "first": 0}
    held_out = {"seed": seed, "first": train}
    shape = (1, SIDE, SIDE)
    return Dataset(
        name="digits",
        x=lazy(digit_images, train, shape, "float32", **facts),
        y=lazy(digit_labels, train, (), "int64", **facts),
        test_x=lazy(digit_images, test, shape, "float32", **held_out),
        test_y=lazy(digit_labels, test, (), "int64", **held_out),
        classes=10,
        description="1,797 handwritten digits of scikit-learn, 8 x 8 pixels resized to 32 x 32",
    )


def digit_images(start: int, stop: int, seed: int, first: int) -> np.ndarray:
    """Return images (stop - start, 1, 32, 32) at these places of the seed's permutation."""
    images, _ = _originals()
    grow = bilinear(8, SIDE)
    chosen = images[split_indices(SAMPLES, seed, start, stop, first)] / 16.0
    return (grow @ chosen @ grow.T)[:, None].astype(np.float32)


def digit_labels(start: int, stop: int, seed: int, first: int) -> np.ndarray:
    """Return labels (stop - start,) at these places of the seed's permutation."""
    return _originals()[1][split_indices(SAMPLES, seed, start, stop, first)].astype(np.int64)


def bilinear(old: int, new: int) -> np.ndarray:
    """Return the matrix (new, old) that resizes a line of ``old`` pixels to ``new`` pixels.

    Pixels are areas: the centre of new pixel ``i`` lies at ``(i + 0.5) * old / new - 0.5`` of the
    old ones, and beyond the outermost centres the line goes on unchanged.
    """
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(centre.astype(int), old - 2) if old > 1 else np.zeros(new, int)
    weight = centre - left
    matrix = np.zeros((new, old))
    matrix[np.arange(new), left] = 1 - weight
    matrix[np.arange(new), np.minimum(left + 1, old - 1)] += weight
    return matrix


@lru_cache(maxsize=1)
def _originals() -> tuple[np.ndarray, np.ndarray]:
    """Read images (1797, 8, 8) 0..16 and labels; kept, as a worker's chunks want the same 1 MB."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target
