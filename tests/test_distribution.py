"""Chunks by hash on workers: even, the same everywhere, and few move when workers change."""

from __future__ import annotations

import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.distribution import Distribution, compare_schemes, placement
from workbench.errors import PlanError
from workbench.hashing import BOUND, SCHEMES, hashes

KEYS = [f"x/{n}" for n in range(1000)]


def names(seed: int, count: int = 10) -> list[str]:
    return [f"cluster {seed}, worker {n}" for n in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_a_thousand_chunks_are_even_and_few_move_when_one_joins(seed: int) -> None:
    before = placement(KEYS, names(seed))
    after = before.with_workers([*names(seed), "new"])
    assert before.balance <= 1.10
    assert after.balance <= 1.101  # 100 chunks where the mean is 90.9, the least whole number
    move = before.moved(after)
    assert {to for _, to in move.keys.values()} == {"new"}
    assert move.share <= 1.15 / 11
    assert move.chunks == move.bytes == len(move.keys)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 9))
def test_only_the_chunks_of_a_worker_that_leaves_move(seed: int, leaver: int) -> None:
    before = placement(KEYS, names(seed))
    gone = names(seed)[leaver]
    move = before.moved(before.with_workers([n for n in names(seed) if n != gone]))
    assert {source for source, _ in move.keys.values()} == {gone}
    assert move.chunks == before.chunks[gone]
    assert move.share == pytest.approx(move.fair)


def test_placed_anew_nearly_the_same_move_on_the_average() -> None:
    moved = [
        placement(KEYS, names(seed)).moved(placement(KEYS, [*names(seed), "new"])).share
        for seed in range(30)
    ]
    assert np.mean(moved) <= 1.15 / 11


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=200),
    st.lists(st.floats(0.2, 5), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_every_chunk_has_one_worker_that_is_there(
    sizes: list[int], capacities: list[float], leavers: list[int]
) -> None:
    workers = {str(n): c for n, c in enumerate(capacities)}
    table = placement({f"k{n}": s for n, s in enumerate(sizes)}, workers)
    for leaver in leavers:
        if len(workers) > 1 and str(leaver) in workers:
            workers.pop(str(leaver))
        workers["j" + str(leaver)] = 1.0
        table = table.with_workers(workers)
        assert set(table.owner) == {f"k{n}" for n in range(len(sizes))}
        assert set(table.owner.values()) <= set(workers)
        assert sum(table.bytes.values()) == sum(sizes)
        assert sum(table.chunks.values()) == len(sizes)
    part = 1 / sum(workers.values())
    for name, held in table.bytes.items():
        mean = sum(sizes) * workers[name] * part
        assert held <= max(BOUND * mean, mean + max(sizes)) + max(sizes)


def test_bytes_follow_the_capacity_of_the_workers() -> None:
    table = placement({key: 1 + n % 7 for n, key in enumerate(KEYS)}, {"a": 1, "b": 2, "c": 4})
    whole = sum(table.sizes)
    for name, part in (("a", 1 / 7), ("b", 2 / 7), ("c", 4 / 7)):
        assert 0.7 * part <= table.bytes[name] / whole <= 1.1 * part + 1e-9
    assert table.balance <= 1.1 + 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_process_places_alike(scheme: str) -> None:
    code = (
        "from workbench.distribution import placement\n"
        f"t = placement([f'x/{{n}}' for n in range(50)], 4, {scheme!r})\n"
        "print(*t.owners)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    ).stdout
    assert printed.split() == list(map(str, placement(KEYS[:50], 4, scheme).owners))


def test_the_hash_is_blake2b_of_the_name_for_ever() -> None:
    assert hashes(("x/0",))[0] == 17014310302837790350


def test_the_schemes_side_by_side() -> None:
    table = compare_schemes(KEYS, 10)
    found = {row["scheme"]: row for row in table.rows}
    assert list(found) == list(SCHEMES)
    assert found["modulo"]["joined"].share > 0.8
    assert found["round robin"]["balance"] == 1.0
    assert found["ring"]["balance"] > found["rendezvous"]["balance"]
    assert {to for _, to in found["ring"]["joined"].keys.values()} == {"10"}
    assert str(table).count("\n") == len(SCHEMES)


def test_arrays_are_placed_by_their_chunks() -> None:
    x = da.zeros((100, 8), chunks=(30, 4), dtype="f4")
    table = placement({"x": x, "y": da.zeros(100, chunks=50)}, ["a", "b"])
    assert len(table.keys) == 8 + 2
    assert dict(zip(table.keys, table.sizes, strict=True))["x/3/1"] == 10 * 4 * 4
    assert placement(x, 2).keys[0] == "x/0/0"
    assert "max/mean" in str(table)


def test_one_worker_has_all() -> None:
    table = placement(KEYS, 1)
    assert table.balance == 1.0
    assert isinstance(table.with_workers(2), Distribution)


def unknown() -> da.Array:
    x = da.ones(10, chunks=5)
    return x[x > 0]


@pytest.mark.parametrize(
    ("chunks", "workers", "scheme", "sentence"),
    [
        (KEYS, 2, "rendevous", "There is no scheme 'rendevous'; did you mean 'rendezvous'?"),
        (KEYS, 2, "md5", "There is no scheme 'md5'; "),
        (KEYS, 0, "ring", "There are no workers to place chunks on"),
        (KEYS, [], "ring", "There are no workers to place chunks on"),
        (KEYS, {"a": 0}, "ring", "Worker 'a' has the capacity 0; give one above 0"),
        (KEYS, None, "ring", "Workers are a number, names, or capacities by name"),
        ([], 2, "ring", "There are no chunks to place"),
        (5, 2, "ring", "Chunks to place are a dask array"),
        ({"k": float("nan")}, 2, "ring", "Chunk 'k' has nan bytes"),
        (unknown(), 2, "ring", r"x has chunks of unknown size; call x.compute_chunk_sizes\(\)"),
        (da.from_array(np.array([{}]), chunks=1), 2, "ring", "x has chunks of object"),
    ],
)
def test_refusals_say_what_works(chunks, workers, scheme, sentence) -> None:
    with pytest.raises(PlanError, match=sentence):
        placement(chunks, workers, scheme)
