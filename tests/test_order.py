"""The order of the data: the same batches for every number of ranks, every sample once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workbench.mesh import shares
from workbench.order import Order

orders = st.integers(1, 60).flatmap(
    lambda n: st.builds(
        Order, st.just(n), st.integers(1, n), st.integers(0, 2**63 - 1), st.integers(1, 9)
    )
)


def taken(order: Order, step: int, degree: int, accumulate: int) -> list[list[int]]:
    """Return the global sample numbers of each micro-batch, ranks joined in order."""
    joined: list[list[int]] = [[] for _ in range(accumulate)]
    for index in range(degree):
        start, stop = order.piece(degree, index)
        for micro, rows in enumerate(order.rows(step, degree, index, accumulate)):
            assert rows.start == len(joined[micro])
            assert all(0 <= i < stop - start for i in rows.index)
            joined[micro] += [start + int(i) for i in rows.index]
            assert rows.total >= len(joined[micro])
    return joined


@given(orders, st.integers(1, 4), st.integers(1, 3), st.integers(0, 40))
def test_batches_do_not_depend_on_the_number_of_ranks(
    order: Order, degree: int, accumulate: int, step: int
) -> None:
    degree = min(degree, order.batch_size)
    serial = taken(order, step, 1, accumulate)
    assert taken(order, step, degree, accumulate) == serial
    assert sum(map(len, serial)) == order.batch_total(step)


@given(orders, st.integers(0, 3))
def test_an_epoch_visits_every_sample_once(order: Order, epoch: int) -> None:
    first = epoch * order.steps_per_epoch
    visited = [
        i
        for step in range(first, first + order.steps_per_epoch)
        for i in taken(order, step, 1, 1)[0]
    ]
    assert sorted(visited) == list(range(order.samples))


@given(orders, st.integers(1, 4))
def test_pieces_tile_the_data_and_full_batches_are_balanced(order: Order, degree: int) -> None:
    degree = min(degree, order.batch_size)
    edges = [order.piece(degree, i) for i in range(degree)]
    assert edges[0][0] == 0
    assert edges[-1][1] == order.samples
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    if order.batch_total(0) == order.batch_size:
        sizes = [len(order.rows(0, degree, i)[0].index) for i in range(degree)]
        assert tuple(sizes) == shares(order.batch_size, degree)


def test_epochs_and_seeds_differ() -> None:
    order = Order(1000, 10, 1)
    first = order.rows(0, 1, 0)[0].index
    assert not np.array_equal(first, order.rows(order.steps_per_epoch, 1, 0)[0].index)
    assert not np.array_equal(first, Order(1000, 10, 2).rows(0, 1, 0)[0].index)


def test_neighbours_in_a_block_come_soon_after_each_other_and_never_in_one_batch() -> None:
    order = Order(1200, 10, 5, block=8)
    steps = {}
    for step in range(order.steps_per_epoch):
        rows = order.rows(step, 1, 0)[0].index
        assert len({row // 120 for row in rows}) == 10  # one of every stratum
        steps.update(dict.fromkeys(rows.tolist(), step))
    for first in range(0, 120, 8):
        block = sorted(steps[row] for row in range(first, first + 8))
        assert block == list(range(block[0], block[0] + 8))
    starts = [steps[row] for row in range(0, 120, 8)]
    assert starts != sorted(starts)
    other = Order(1200, 10, 5, block=8).rows(order.steps_per_epoch, 1, 0)[0].index
    assert not np.array_equal(other, order.rows(0, 1, 0)[0].index)


def test_the_order_of_an_epoch_is_made_once() -> None:
    from workbench.order import _shuffled

    order = Order(1000, 10, seed=987)
    for step in range(order.steps_per_epoch):
        order.rows(step, 2, 1)
    before = _shuffled.cache_info().misses
    order.rows(0, 2, 1)
    assert _shuffled.cache_info().misses == before
