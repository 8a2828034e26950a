"""Amdahl's law and the serial fraction of Karp and Flatt, against numbers made by the law."""

from __future__ import annotations

import pytest
from fake_comparison import row
from hypothesis import given
from hypothesis import strategies as st

from workbench.amdahl import Point, axes_of, fit, fits


def amdahl(fraction: float, cores: int) -> float:
    return 1 / (fraction + (1 - fraction) / cores)


@given(st.floats(0.0, 1.0), st.lists(st.integers(2, 64), min_size=1, max_size=6, unique=True))
def test_the_fraction_that_made_the_points_is_found(fraction: float, cores: list[int]) -> None:
    found = fit("data", [Point(n, amdahl(fraction, n)) for n in sorted(cores)])
    assert found.serial_fraction == pytest.approx(fraction, abs=1e-9)
    assert all(point.karp_flatt == pytest.approx(fraction, abs=1e-9) for point in found.points)
    assert found.speedup(1) == pytest.approx(1.0)
    assert found.speedup(cores[0]) == pytest.approx(amdahl(fraction, cores[0]))


def test_numbers_worked_by_hand() -> None:
    assert Point(2, 1.6).karp_flatt == pytest.approx(0.25)  # (0.625 - 0.5) / 0.5
    assert Point(4, 2.0).karp_flatt == pytest.approx(1 / 3)  # (0.5 - 0.25) / 0.75
    assert fit("data", [Point(4, 2.0)]).limit == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("speedups", "says"),
    [
        ({2: 0.8, 4: 0.7}, "gains nothing at 2, 4 cores: it is slower than one core"),
        ({2: 2.1}, "as fast as ideal or faster at 2 cores"),
        ({2: 1.6}, "25 % of a step of data is not divided .*at most 4 times.*one degree says noth"),
        ({2: 1.8, 8: 2.0}, "grows from 11 % to 43 %: the overhead grows"),
        ({2: 1.6, 8: 2.9}, r"stays \(25 % to 25 %\): that part is serial"),
        ({2: 1.2, 8: 4.0}, "falls from 67 % to 14 %"),
    ],
)
def test_the_sentence(speedups: dict[int, float], says: str) -> None:
    import re

    assert re.search(says, fit("data", [Point(n, s) for n, s in speedups.items()]).sentence)


def test_rows_of_the_same_axes_are_one_strategy() -> None:
    rows = [
        row("serial", 1, 1, 0.08),
        row("serial", 1, 2, 0.05),
        row("data=2", 2, 1, 0.05),
        row("data=4", 4, 1, 0.03),
        row("data=2,tensor=2", 4, 1, 0.03),
        row("data=2", 2, 2, 0.02),  # on 4 cores too, and faster
        row("tensor=2", 2, 1, 0.05, speedup=None),
    ]
    data, both = fits(rows)
    assert (data.strategy, both.strategy) == ("data", "data,tensor")
    assert [(p.cores, p.speedup) for p in data.points] == [
        (2, pytest.approx(1.6)),
        (4, pytest.approx(4.0)),
    ]
    first = {"cores": 2, "speedup": 1.6, "karp_flatt": 0.25}
    assert data.to_json()["points"][0] == pytest.approx(first)
    assert axes_of("spatial=2x2,data=2") == axes_of("spatial=4,data=3")


def test_a_gpu_counts_as_one_core_whatever_its_threads() -> None:
    [found] = fits([row("data=2", 2, 8, 0.05, device="cuda")])
    assert found.points[0].cores == 2
