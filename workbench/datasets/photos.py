"""The two sample photographs that come with scikit-learn, with noise to be removed."""

from __future__ import annotations

import numpy as np

from workbench.datasets.dataset import Dataset, lazy
from workbench.errors import PlanError

NAMES = ("china.jpg", "flower.jpg")
SHAPE = (3, 427, 640)
TEST_VERSIONS = 1


def photos(versions: int = 4, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Return noisy photographs as ``x`` and the same clean ones as ``y``, values 0..1 in float32.

    Both are (2 * versions, 3, 427, 640). Each version of a photograph has its own Gaussian noise of
    standard deviation ``noise``. Testing uses the same two photographs with noise that training
    never saw.

    Raises
    ------
    PlanError
        if there is no version of a photograph, or the noise is not a positive number.
    """
    if versions < 1 or not 0 < noise < float("inf"):
        raise PlanError(
            f"The photographs need at least 1 version each and noise above 0; got {versions} "
            f"versions with noise {noise}."
        )
    train, test = len(NAMES) * versions, len(NAMES) * TEST_VERSIONS
    facts = {"noise": noise, "seed": seed, "first": 0}
    held_out = {"noise": noise, "seed": seed, "first": train}
    return Dataset(
        name="photos",
        x=lazy(noisy_photos, train, SHAPE, "float32", **facts),
        y=lazy(clean_photos, train, SHAPE, "float32"),
        test_x=lazy(noisy_photos, test, SHAPE, "float32", **held_out),
        test_y=lazy(clean_photos, test, SHAPE, "float32"),
        classes=None,
        description=f"two photographs, 427 x 640 pixels, {versions} times each with fresh noise",
    )


def noisy_photos(start: int, stop: int, noise: float, seed: int, first: int) -> np.ndarray:
    """Return photographs (stop - start, 3, 427, 640), each with noise of its own number."""
    images = clean_photos(start, stop)
    for image, number in zip(images, range(first + start, first + stop), strict=True):
        source = np.random.default_rng([seed, number])
        image += np.float32(noise) * source.standard_normal(SHAPE, np.float32)
    return images


def clean_photos(start: int, stop: int) -> np.ndarray:
    """Return photographs (stop - start, 3, 427, 640): the two of them in turn."""
    from sklearn.datasets import load_sample_image

    images = np.empty((stop - start, *SHAPE), np.float32)
    for place, number in enumerate(range(start, stop)):
        pixels = load_sample_image(NAMES[number % len(NAMES)])
        images[place] = pixels.transpose(2, 0, 1) / np.float32(255)
    return images
