"""A run's model on dask arrays, and graph mode on real workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from chunked import UNet, cut

import workbench as wb
from workbench.cluster.lab import Lab

pytestmark = pytest.mark.timeout(90)


def test_a_run_predicts_from_weights_on_its_workers(lab: Lab, tmp_path: Path) -> None:
    work = wb.workload("digits-cnn")
    run = wb.run(work, "tensor=2", steps=2, folder=tmp_path, lab=lab).wait()
    x, y = work.test_data
    outputs = wb.predict(run, x.rechunk((50, -1, -1, -1)))
    score = wb.evaluate(run)
    right = float((outputs.argmax(1) == y).mean().compute(scheduler=lab.client))
    assert right == pytest.approx(score.accuracy)
    assert score.confusion is not None
    assert score.confusion.sum() == score.samples == len(x)
    assert np.trace(score.confusion) == pytest.approx(score.accuracy * len(x))
    tiles = wb.predict(run, x[:3].rechunk((3, 1, 16, 32)), "spatial")
    gap = tiles - outputs[:3]
    assert float(abs(gap).max().compute(scheduler=lab.client)) < 1e-5


def test_tiles_are_exact_on_real_workers(lab: Lab) -> None:
    torch.manual_seed(0)
    model = UNet().eval().double()
    image = torch.randn(1, 1, 33, 21, dtype=torch.float64)
    lazy = wb.apply(model, cut(image, (1, 1, 11, 21)))
    with torch.no_grad():
        want = model(image).numpy()
    assert np.abs(lazy.compute(scheduler=lab.client) - want).max() < 1e-12


def test_what_is_not_trained_yet_cannot_predict(lab: Lab, tmp_path: Path) -> None:
    work = wb.workload("digits-cnn")
    run = wb.run(work, "serial", steps=500, folder=tmp_path, lab=lab)
    with pytest.raises(wb.RunError, match="has no parameters to give"):
        wb.predict(run, work.x)
    run.stop()
    run.wait()
