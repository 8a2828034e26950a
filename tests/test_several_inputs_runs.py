"""Models of several inputs on real processes: from files, kept, gone on from, scored, asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attending import Reader, arrays, reading
from rank_threads import run_on_threads

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.scoring import Score
from workbench.workload import Workload

pytestmark = pytest.mark.timeout(120)


def from_files(folder: Path) -> Workload:
    """Return the workload whose words and mask are in files, by the names of its arguments."""
    (words, mask), y = arrays(21)
    (test_words, test_mask), test_y = arrays(9, seed=1)
    np.save(folder / "words.npy", words)
    np.save(folder / "mask.npy", mask)
    lazy = {name: wb.dataset(folder / f"{name}.npy")["x"] for name in ("words", "mask")}
    return reading(data=(lazy, y), test_data=({"words": test_words, "mask": test_mask}, test_y))


def trained_model(run: Any) -> Reader:
    model = Reader().double().eval()
    values = {name: torch.from_numpy(array.compute()) for name, array in run.parameters.items()}
    model.load_state_dict(values)
    return model


def test_a_run_with_a_mask_is_kept_and_gone_on_from(lab: Lab, tmp_path: Path) -> None:
    work = from_files(tmp_path)
    expected = run_on_threads(reading(), "serial", 5)
    run = wb.run(work, "data=2", steps=3, folder=tmp_path).wait(60)
    assert {row["sent_bytes"] for row in run.history[:2]} == {run.plan.bytes_per_step}
    losses = [row["loss"] for row in run.history]
    loaded = wb.load(wb.save(run, tmp_path / "kept"), "tensor=2", work=work)
    again = wb.run(work, "pipeline=2", steps=2, folder=tmp_path, start=loaded).wait(60)
    losses += [row["loss"] for row in again.history]
    np.testing.assert_allclose(losses, expected.losses, rtol=0, atol=1e-9)
    for name, array in again.parameters.items():
        want = expected.state[f"parameter:{name}"]
        np.testing.assert_allclose(array.compute(), want, rtol=0, atol=1e-9, err_msg=name)
    score = expected.outcomes[0].score
    assert score is not None
    assert again.accuracy == score.accuracy
    assert again.test_loss == pytest.approx(score.loss, rel=1e-9)


def test_a_trained_model_is_scored_and_asked_with_a_mask(lab: Lab, tmp_path: Path) -> None:
    work = reading()
    run = wb.run(work, "data=2", steps=2, folder=tmp_path).wait(60)
    model = trained_model(run)
    (words, mask), y = arrays(13, seed=2)
    made = model(torch.from_numpy(words), torch.from_numpy(mask)).detach()
    wanted = torch.nn.functional.cross_entropy(made, torch.from_numpy(y)).item()
    data = ((words, mask), y)
    found: list[Score] = [wb.evaluate(run, data), wb.evaluate(model, data)]
    assert [score.loss for score in found] == pytest.approx([wanted, wanted], rel=1e-9)
    with pytest.raises(wb.PlanError, match=r"have shape \(5,\) and \(5,\); .* \(6,\) and \(6,\)"):
        wb.evaluate(run, ((words[:, :5], mask[:, :5]), y))
    with pytest.raises(wb.PlanError, match=r"The test data has x, and the data to learn from x\[0"):
        wb.evaluate(run, (words, y))
    for asked in (wb.predict(run, (words, mask)), wb.apply(model, (words, mask), batch_size=5)):
        np.testing.assert_allclose(asked.compute(), made.numpy(), rtol=0, atol=1e-9)
    with pytest.raises(wb.PlanError, match="missing 1 required positional argument: 'mask'"):
        wb.predict(run, words)
    with pytest.raises(wb.PlanError, match=r"of shape \(13, 6\) and \(12, 6\); dim 0"):
        wb.predict(run, (words, mask[:-1]))
    with pytest.raises(wb.PlanError, match="names words, mask; give a tuple"):
        wb.apply(model, {"words": words, "mask": mask})
    with pytest.raises(wb.PlanError, match="given 2 inputs; use strategy='data'"):
        wb.apply(model, (words, mask), "spatial")


def test_stored_inputs_stay_where_they_are(lab: Lab, tmp_path: Path) -> None:
    (words, mask), y = arrays(21)
    stored = wb.store(words, mask, y)
    *inputs, labels = stored.arrays
    work = reading(data=(inputs, labels), test_data=None)
    run = wb.run(work, "data=2", steps=2, folder=tmp_path).wait(60)
    expected = run_on_threads(reading(), "serial", 2)
    np.testing.assert_allclose([row["loss"] for row in run.history], expected.losses, atol=1e-12)
