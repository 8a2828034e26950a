"""Which samples make which batch, and which rank takes them.

The order of the data depends on the number of samples, the batch size and the seed, never on the
number of ranks: so every strategy sees the batches that the serial run sees. It is *stratified*:
the samples are cut into as many strata as a batch has places, each stratum is shuffled by itself
in every epoch, and batch ``i`` takes the ``i``-th sample of every stratum. Places are dealt to
ranks by the balanced split, and a rank owns the strata of its places: its samples are one
contiguous piece of the data, which never leaves its worker, and every full batch is divided
evenly.

Data that is read from files as it is needed is read faster in runs of neighbours. With ``block=n``
the shuffle of a stratum is in two levels: its blocks of ``n`` neighbours in random order, and the
samples of a block in random order. Neighbours are then visited within ``n`` steps of each other,
but never in one batch; every batch still has one sample of every stratum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from workbench.mesh import balanced

_KEYS_PER_BLOCK = 4  # Philox makes four 64-bit numbers for each value of its counter.
_BLOCKS = 2**63  # added to the epoch: blocks have other keys than samples


@dataclass(frozen=True, slots=True)
class Rows:
    """What one rank takes of one micro-batch.

    Attributes
    ----------
    index:
        Positions in the rank's own piece of the data, in the order of the serial micro-batch.
    start:
        Place of the first of them in the serial micro-batch.
    total:
        Samples of the micro-batch over all ranks.
    """

    index: np.ndarray
    start: int
    total: int


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which ``samples`` are visited in batches of ``batch_size``.

    ``block`` neighbours are visited together; 1 shuffles every stratum as a whole.
    """

    samples: int
    batch_size: int
    seed: int
    block: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one is short where the batch size does not divide."""
        return -(-self.samples // self.batch_size)

    def piece(self, degree: int, index: int) -> tuple[int, int]:
        """Return the range of samples that rank ``index`` of ``degree`` owns."""
        first, last = balanced(self.batch_size, degree, index)
        return self._edge(first), self._edge(last)

    def batch_total(self, step: int) -> int:
        """Return the number of samples of the whole batch of ``step``."""
        turn = step % self.steps_per_epoch
        return min(self.batch_size, self.samples - turn * self.batch_size)

    def taken(self, step: int, degree: int, index: int) -> int:
        """Return how many samples of the batch of ``step`` rank ``index`` of ``degree`` takes."""
        filled = self._filled(step % self.steps_per_epoch)
        return int(np.count_nonzero(filled[slice(*balanced(self.batch_size, degree, index))]))

    def rows(self, step: int, degree: int, index: int, accumulate: int = 1) -> tuple[Rows, ...]:
        """Return what rank ``index`` takes in each of the micro-batches of ``step``.

        Micro-batch ``m`` of ``accumulate`` takes the places ``m, m + accumulate, ...`` of the
        batch, so it too is the same set of samples for every number of ranks.
        """
        epoch, turn = divmod(step, self.steps_per_epoch)
        filled = self._filled(turn)
        first, last = balanced(self.batch_size, degree, index)
        order = _shuffled(self, epoch, first, last)
        offset = self._edge(first)
        edges = _edges(self)[first:last]
        if accumulate == 1 and filled.all():  # most batches of most runs
            return (Rows(order[edges - offset + turn], first, self.batch_size),)
        micro_batches = []
        for micro in range(accumulate):
            places = np.arange(self.batch_size) % accumulate == micro
            mine = filled[first:last] & places[first:last]
            before = int(np.count_nonzero(filled[:first] & places[:first]))
            position = order[edges[mine] - offset + turn]
            micro_batches.append(Rows(position, before, int(np.count_nonzero(filled & places))))
        return tuple(micro_batches)

    def _edge(self, stratum: int) -> int:
        return stratum * self.samples // self.batch_size

    def _filled(self, turn: int) -> np.ndarray:
        """Return which strata still have a sample in batch ``turn`` of an epoch."""
        result: np.ndarray = np.diff(_edges(self)) > turn
        return result


@lru_cache(maxsize=8)
def _edges(order: Order) -> np.ndarray:
    """Return where the strata begin, and where the last one ends."""
    return np.arange(order.batch_size + 1, dtype=np.int64) * order.samples // order.batch_size


@lru_cache(maxsize=8)  # the order of an epoch serves all its steps
def _shuffled(order: Order, epoch: int, first: int, last: int) -> np.ndarray:
    """Return the own samples, each stratum shuffled, as positions in the own piece.

    Every sample has a random key that depends on its number in the whole data set, drawn by a
    counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)
    that can start anywhere: no rank draws the keys of another. Blocks have keys of the same kind.
    """
    edges = _edges(order)[first : last + 1]
    start, stop = int(edges[0]), int(edges[-1])
    stratum = np.repeat(np.arange(first, last), np.diff(edges))
    keys = _keys(order.seed, epoch, start, stop)
    if order.block == 1:
        return np.lexsort((keys, stratum))
    blocks = np.arange(start, stop) // order.block
    of_blocks = _keys(order.seed, epoch + _BLOCKS, int(blocks[0]), int(blocks[-1]) + 1)
    return np.lexsort((keys, of_blocks[blocks - blocks[0]], stratum))


def _keys(seed: int, stream: int, start: int, stop: int) -> np.ndarray:
    """Return the random keys of numbers ``start`` to ``stop``."""
    generator = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    generator.advance(start // _KEYS_PER_BLOCK)
    return generator.random_raw(stop - start + start % _KEYS_PER_BLOCK)[start % _KEYS_PER_BLOCK :]
