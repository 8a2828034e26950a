"""The picture that a run works on: shares of ranks, put together; and the panel's three images."""

from __future__ import annotations

import numpy as np
import pytest
from rank_threads import run_on_threads
from test_operator_networks import network

from workbench.preview import Assembly, Preview
from workbench.ui.pictures import strip


def shown(strategy: str, name: str = "unet") -> Preview | None:
    run = run_on_threads(network(name), strategy, 6, preview=True)
    assembly = Assembly()
    for outlet in run.outlets:
        for kind, data in outlet.messages:
            if kind == "preview":
                assembly.add(data)  # type: ignore[arg-type]
    return assembly.newest


@pytest.mark.parametrize(
    "strategy", ["spatial=2", "spatial=3", "spatial=2x2", "data=2", "data=2,spatial=2", "channel=2"]
)
def test_shares_of_ranks_make_the_picture_of_the_serial_run(strategy: str) -> None:
    serial, cut = shown("serial"), shown(strategy)
    assert serial is not None
    assert cut is not None
    assert cut.step == serial.step
    for kind in ("input", "output", "target"):
        a, b = getattr(serial, kind).astype(int), getattr(cut, kind).astype(int)
        assert a.shape == b.shape == (20, 12, 3)
        assert np.abs(a - b).max() <= 1  # rounding to eight bits
    assert cut.output_psnr_db == pytest.approx(serial.output_psnr_db, abs=0.1)


def test_a_model_that_makes_no_picture_has_none() -> None:
    assert shown("spatial=2", "resnet") is None


def test_the_panel_shows_three_images_with_decibels() -> None:
    serial = shown("serial")
    assert serial is not None
    html = strip(serial)
    assert html.count("data:image/png;base64,") == 3
    assert f"made at step {serial.step + 1}: {serial.output_psnr_db:.1f} dB" in html
    assert strip(None) == ""
