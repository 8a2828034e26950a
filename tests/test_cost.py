"""What an epoch costs, in seconds of cores and in money."""

from __future__ import annotations

from typing import Any

import pytest
from fake_comparison import row

from workbench.cost import check_price, cost
from workbench.errors import PlanError


def test_an_epoch_is_all_samples_the_short_last_batch_included() -> None:
    line = row("data=2", 2, 3, 0.05)
    assert cost(line, 1000, 128, 1.8) == pytest.approx(
        {"epoch_s": 0.4, "core_s_per_epoch": 2.4, "price_per_epoch": 1.8 * 2 * 0.4 / 3600}
    )
    assert cost(line, 1000, 128, None)["price_per_epoch"] is None
    assert cost({**line, "device": "cuda"}, 1000, 128, None)["core_s_per_epoch"] == 0.8


@pytest.mark.parametrize("price", [-1, "3", float("nan"), float("inf"), True])
def test_what_is_no_price_is_refused(price: Any) -> None:
    with pytest.raises(PlanError, match="must be a number, 0 or more"):
        check_price(price)


def test_prices() -> None:
    assert check_price(None) is None
    assert check_price(0) == 0.0
    assert check_price(1.25) == 1.25
