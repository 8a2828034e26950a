"""The states of the generators that a user's own code draws from: torch's, numpy's and Python's.

Dropout layers and the order of the data draw by step and need none of these. Code that draws itself
(``F.dropout``, ``random.random()``) does, and a run that goes on must draw what comes next.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# The generators are the process's, and ranks on threads, plans and models are made side by side.
_held = threading.RLock()


@contextmanager
def set_aside(seed: int | None = None) -> Iterator[None]:
    """Draw from torch's generator on the CPU, begun with ``seed`` if given, then put it back.

    No other thread begins anew or sets aside meanwhile: what a seed gives is always the same.
    """
    with _held, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def seed_all(seed: int) -> None:
    """Begin anew with ``seed``."""
    seed %= 2**64
    with _held:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)


@dataclass(frozen=True)
class Moment:
    """Where the generators are, as each of them tells it; ``cuda`` is None on other devices."""

    cpu: torch.Tensor
    numpy: Any
    python: Any
    cuda: torch.Tensor | None


def moment(device: torch.device) -> Moment:
    """Return where all generators are that code on ``device`` may draw from."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return Moment(torch.get_rng_state(), np.random.get_state(), random.getstate(), on_device)


@contextmanager
def again_from(then: Moment, device: torch.device) -> Iterator[None]:
    """Draw what was drawn after ``then``, and afterwards go on as if nothing had been drawn."""
    now = moment(device)
    _go_to(then, device)
    try:
        yield
    finally:
        _go_to(now, device)


def _go_to(where: Moment, device: torch.device) -> None:
    torch.set_rng_state(where.cpu)
    np.random.set_state(where.numpy)
    random.setstate(where.python)
    if where.cuda is not None:
        torch.cuda.set_rng_state(where.cuda, device)


def states(device: torch.device) -> dict[str, NDArray[Any]]:
    """Return the state of each generator as one array of whole numbers, by its name."""
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    found = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.array([*keys, place, has_gauss, _bits(float(gauss))], dtype=np.uint64),
        "python": np.array(
            [version, *words, next_gauss is not None, _bits(next_gauss or 0.0)], dtype=np.uint64
        ),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device).numpy()
    return found


def restore(given: Mapping[str, NDArray[Any]], device: torch.device) -> None:
    """Go on from states that :func:`states` has returned; those not given stay as they are."""
    if "torch" in given:
        torch.set_rng_state(torch.from_numpy(given["torch"].copy()))
    if "numpy" in given:
        *keys, place, has_gauss, gauss = given["numpy"].tolist()
        state = ("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, _number(gauss))
        np.random.set_state(state)
    if "python" in given:
        version, *words, has_gauss, gauss = given["python"].tolist()
        random.setstate((version, tuple(words), _number(gauss) if has_gauss else None))
    if "cuda" in given and device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(given["cuda"].copy()), device)


def _bits(number: float) -> int:
    return int(np.float64(number).view(np.uint64))


def _number(bits: int) -> float:
    return float(np.uint64(bits).view(np.float64))
