"""Which worker has which key: rendezvous hashing with bounded loads, and schemes to compare it to.

Every scheme is a function of names: no process has to be asked where a chunk lies, and two runs of
Python agree (``blake2b``; Python's own ``hash`` of a text is salted anew in every process).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

BOUND = 1.1
"""A worker has at most this times the mean bytes for its capacity."""

POINTS = 100
"""Points of a worker of mean capacity on the ring."""

Owners = NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """Keys with their bytes, and workers with their capacities: what a scheme is asked.

    ``sizes`` and ``capacities`` are float64; capacities are shares of the whole and sum to 1.
    """

    keys: tuple[str, ...]
    sizes: NDArray[np.float64]
    workers: tuple[str, ...]
    capacities: NDArray[np.float64]

    @cached_property
    def limits(self) -> NDArray[np.float64]:
        """Bytes that each worker may have: ``BOUND`` times its mean.

        Chunks are not divided: a worker may always have its mean rounded up to a whole number of
        the largest ones, as in Mirrokni et al., section 2.
        """
        mean = self.sizes.sum() * self.capacities
        largest = self.sizes.max(initial=0) or 1.0
        return np.maximum(BOUND * mean, np.ceil(mean / largest - 1e-9) * largest) * (1 + 1e-12)

    def costs(self) -> NDArray[np.float64]:
        """Return (keys, workers): a key prefers the worker where this is least.

        Exponential numbers with the capacity as their rate, so a worker is the first choice of a
        key with a probability of just its share: weighted rendezvous hashing, also called highest
        random weight (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
        IEEE/ACM Transactions on Networking 6, 1998; weights as in Schindelhauer and Schomaker,
        "Weighted distributed hash tables", SPAA 2005).
        """
        mixed = _mixed(hashes(self.keys)[:, None] ^ hashes(self.workers)[None, :])
        uniform = ((mixed >> np.uint64(11)) + 0.5) * 2.0**-53
        found: NDArray[np.float64] = -np.log(uniform) / self.capacities
        return found

    def in_turn(self) -> NDArray[np.int64]:
        """Return the keys in the order in which they choose: large ones first, then by hash."""
        return np.lexsort((hashes(self.keys), -self.sizes))


def rendezvous(question: Question) -> Owners:
    """Have every key go down its list of workers, best first, to one that has room.

    Bounded loads are of Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded
    loads", SODA 2018.
    """
    owners = np.full(len(question.keys), -1, np.int64)
    load = np.zeros(len(question.workers))
    _seat(question, owners, load, question.in_turn(), question.costs())
    return owners


def resettle(question: Question, owners: Owners) -> Owners:
    """Return where keys go when the workers have changed, with as few as possible on the move.

    ``owners`` are the workers that the keys had, -1 for those whose worker is gone; who has none is
    new. A key leaves a worker that stays only if that one is over its limit, or if a new worker is
    higher on the key's list: what a newcomer may have at all is the most that moves when it joins.
    """
    owners = owners.copy()
    costs, limits = question.costs(), question.limits
    there = owners >= 0
    load = np.bincount(
        owners[there], weights=question.sizes[there], minlength=len(question.workers)
    ).astype(float)
    new = np.flatnonzero(load == 0)  # as good as new: nothing is on them
    turn = question.in_turn()
    _seat(question, owners, load, [k for k in turn if not there[k]], costs)
    # Who is over the limit gives up first what likes a newcomer best.
    for worker in np.flatnonzero(load > limits):
        mine = np.flatnonzero(owners == worker)
        better = costs[np.ix_(mine, new)].min(1) if len(new) else costs[mine].min(1)
        leaving = mine[np.argsort(better - costs[mine, worker], kind="stable")]
        for key in leaving:
            if load[worker] <= limits[worker]:
                break
            target = _with_room(question, key, costs, load, new)
            if target is None:
                target = _with_room(question, key, costs, load, range(len(load)))
            if target is not None and target != worker:
                load[worker] -= question.sizes[key]
                load[target] += question.sizes[key]
                owners[key] = target
    for worker in new:
        wish = costs[:, worker] < costs[np.arange(len(owners)), owners]
        for key in turn[wish[turn]]:
            if load[worker] + question.sizes[key] <= limits[worker]:
                load[owners[key]] -= question.sizes[key]
                load[worker] += question.sizes[key]
                owners[key] = worker
    return owners


def ring(question: Question) -> Owners:
    """Give every key to the next point of a worker on a circle: consistent hashing.

    Karger et al., "Consistent hashing and random trees", STOC 1997. A worker has ``POINTS`` points
    times its capacity over the mean one.
    """
    points = [
        (point, index)
        for index, (name, part) in enumerate(
            zip(question.workers, question.capacities, strict=True)
        )
        for point in hashes(
            tuple(
                f"{name}#{n}" for n in range(max(1, round(POINTS * part * len(question.workers))))
            )
        ).tolist()
    ]
    points.sort()
    places = np.array([place for place, _ in points], np.uint64)
    owners = np.array([index for _, index in points], np.int64)
    found: Owners = owners[np.searchsorted(places, hashes(question.keys)) % len(places)]
    return found


def modulo(question: Question) -> Owners:
    """Give a key to the worker whose number is the key's hash modulo their count; all count alike.

    Any change of the count moves nearly all keys.
    """
    return (hashes(question.keys) % np.uint64(len(question.workers))).astype(np.int64)


def round_robin(question: Question) -> Owners:
    """Deal the keys in their order, one to each worker in turn; all count alike.

    As even as can be, and it needs the whole list of keys.
    """
    return np.arange(len(question.keys)) % len(question.workers)


SCHEMES: dict[str, Callable[[Question], Owners]] = {
    "rendezvous": rendezvous,
    "ring": ring,
    "modulo": modulo,
    "round robin": round_robin,
}


@lru_cache(maxsize=16)
def hashes(names: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return 64 bits of blake2b of each name, the same in every process and on every machine."""
    digests = [blake2b(name.encode(), digest_size=8).digest() for name in names]
    found = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    found.flags.writeable = False
    return found


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return bits of which each depends on all of the given ones (the end of splitmix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _seat(
    question: Question,
    owners: Owners,
    load: NDArray[np.float64],
    turn: Sequence[int] | Owners,
    costs: NDArray[np.float64],
) -> None:
    """Give every key of ``turn`` to the first worker on its list that has room."""
    limits, sizes = question.limits, question.sizes
    lists = np.argsort(costs, axis=1, kind="stable")
    for key in turn:
        size = sizes[key]
        for worker in lists[key]:
            if load[worker] + size <= limits[worker]:
                break
        else:  # chunks of many sizes may leave gaps that none fits into
            worker = int(np.argmin((load + size) / question.capacities))
        owners[key] = worker
        load[worker] += size


def _with_room(
    question: Question,
    key: int,
    costs: NDArray[np.float64],
    load: NDArray[np.float64],
    workers: Sequence[int] | range | Owners,
) -> int | None:
    fits = [w for w in workers if load[w] + question.sizes[key] <= question.limits[w]]
    return int(min(fits, key=lambda w: costs[key, w])) if fits else None
