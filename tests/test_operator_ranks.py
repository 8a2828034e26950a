"""Whole networks cut in space and in channels on real rank processes, against serial."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_operator_networks import network

from workbench.cluster.lab import Lab
from workbench.run import run
from workbench.state import largest_difference

LIMIT_S = 120.0


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("resnet", "spatial=2"),
        ("unet", "spatial=2"),
        ("volume", "spatial=2"),
        ("resnet", "channel=2"),
    ],
)
def test_real_ranks_give_the_serial_weights(
    lab: Lab, tmp_path: Path, name: str, strategy: str
) -> None:
    work = network(name)
    runs = [
        run(work, chosen, steps=5, folder=tmp_path, lab=lab).wait(LIMIT_S)
        for chosen in ("serial", strategy)
    ]
    assert largest_difference(*runs) <= 1e-9
    # Batches 0 and 1 are full; what they sent is what the plan says of the busiest rank.
    assert [row["sent_bytes"] for row in runs[1].history[:2]] == [runs[1].plan.bytes_per_step] * 2
    assert runs[0].test_loss == pytest.approx(runs[1].test_loss, rel=1e-9)
