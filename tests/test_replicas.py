"""Fewer bytes on the axis data: compressed gradients, and replicas that make steps of their own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equality import workload as network
from rank_threads import ThreadRun, run_on_threads
from torch import nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.errors import PlanError
from workbench.layers.compression import reducer
from workbench.mesh import balanced
from workbench.order import Order
from workbench.plan.replicas import Compression
from workbench.workload import Workload

STEPS = 6
SGD = partial(torch.optim.SGD, lr=0.05)


def workload(
    batch_size: int = 4, samples: int = 24, optimizer: Any = SGD, clip_norm: float | None = None
) -> Workload:
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    x, way = source.normal(size=(samples, 16)), source.normal(size=(16, 5))
    return Workload(
        model=nn.Sequential(
            nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 5)
        ),
        data=(x, (x @ way).argmax(1)),
        optimizer=optimizer,
        batch_size=batch_size,
        clip_norm=clip_norm,
        dtype="float64",
    )


def assert_bytes(run: ThreadRun) -> None:
    """Every step's counted bytes are those of the plan, the average at the end of the run too."""
    for rank, outcome in enumerate(run.outcomes):
        counted = [int(row["sent_bytes"]) for row in outcome.rows]
        period = run.plan.period
        planned = [run.plan.sent_bytes(rank, step) for step in range(len(counted))]
        planned[-1] = run.plan.sent_bytes(rank, period - 1)
        assert counted == planned
        if len(counted) >= period:
            assert -(-sum(counted[:period]) // period) == run.plan.sent_bytes(rank)


def assert_same(got: ThreadRun, want: ThreadRun, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(got.losses, want.losses, atol=tolerance)
    for name, value in want.state.items():
        if name.startswith(("parameter", "buffer")):
            np.testing.assert_allclose(got.state[name], value, atol=tolerance, err_msg=name)


EXACT: list[tuple[dict[str, Any], float]] = [
    ({"compression": "topk", "topk_ratio": 1}, 1e-12),
    # A gradient of four samples has rank four, so that four columns say all of it.
    ({"compression": "powersgd", "powersgd_rank": 4}, 1e-9),
    ({"sync_every": 1}, 1e-9),
    ({"sync_every": 1, "outer": "nesterov", "outer_lr": 1, "outer_momentum": 0}, 1e-9),
]


@pytest.mark.parametrize(("options", "tolerance"), EXACT)
@pytest.mark.parametrize(
    "strategy", ["data=2", "data=3", "data=2,tensor=2", "data=2,sharded=2", "data=2,pipeline=2"]
)
def test_what_leaves_nothing_out_is_the_serial_run(
    strategy: str, options: dict[str, Any], tolerance: float
) -> None:
    work = workload()
    got = run_on_threads(work, strategy, STEPS, **options, accumulate=1)
    assert_same(got, run_on_threads(work, "serial", STEPS), tolerance)
    assert_bytes(got)


@pytest.mark.parametrize("samples", [21, 22])
def test_averages_count_samples_in_a_short_batch_too(samples: int) -> None:
    work = workload(5, samples)  # the last batch has fewer samples than replicas
    got = run_on_threads(work, "data=3", STEPS, sync_every=1)
    assert_same(got, run_on_threads(work, "serial", STEPS))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "bf16"},
        {"compression": "powersgd", "powersgd_rank": 1},
        {"compression": "topk", "topk_ratio": 0.1},
        {"sync_every": 4},
        {"sync_every": 4, "outer": "nesterov"},
    ],
)
@pytest.mark.parametrize("strategy", ["data=2", "data=3"])
def test_what_leaves_something_out_learns_all_the_same(
    strategy: str, options: dict[str, Any]
) -> None:
    work = workload(8, 24, partial(torch.optim.SGD, lr=0.3))
    got = run_on_threads(work, strategy, 30, **options)
    assert got.losses[-3:].mean() < 0.5 * got.losses[:3].mean()
    assert_bytes(got)
    whole = wb.plan(work, strategy).bytes_per_step
    assert got.plan.bytes_per_step < 0.6 * whole
    assert "Not equal to the serial run, by design" in str(got.plan)


@pytest.mark.parametrize(
    "compression", [Compression("topk", ratio=0.1), Compression("powersgd", rank=2)]
)
def test_what_is_not_sent_is_kept_and_nothing_is_lost(compression: Compression) -> None:
    shapes = [(9, 7), (5,), (6, 2, 4)]
    numel = 9 * 7 + 5 + 6 * 8
    given = torch.randn(3, 5, numel, dtype=torch.float64)

    def rank(comm: Comm) -> tuple[torch.Tensor, torch.Tensor]:
        reduce = reducer(compression, shapes, given[0, 0], comm, seed=1)
        total = torch.zeros(numel, dtype=torch.float64)
        for gradient in given[comm.rank]:
            bucket = gradient.clone()
            reduce(bucket, "test")
            total += bucket
        missed = reduce.missed  # type: ignore[attr-defined]
        if isinstance(missed, list):
            pieces = torch.zeros(numel, dtype=torch.float64).split([9 * 7, 5, 6 * 8])
            for piece, each in zip(pieces, missed, strict=True):
                piece[: each.numel()] += each
            missed = torch.cat(pieces)
        return total, missed

    found = run_threads(3, rank)
    assert all(torch.equal(total, found[0][0]) for total, _ in found)
    everything = found[0][0] + sum(missed for _, missed in found)
    torch.testing.assert_close(everything, given.sum((0, 1)))
    assert not torch.allclose(found[0][0], given.sum((0, 1)))


def test_averages_are_those_of_runs_side_by_side() -> None:
    work = workload(5, 20, partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    got = run_on_threads(work, "data=2", 3, sync_every=50)
    order = Order(20, 5, work.seed)
    x, y = (torch.from_numpy(each.compute()) for each in (work.x, work.y))
    mean: dict[str, Any] = {}
    for replica in range(2):
        model = work.make_model()
        optimizer = work.make_optimizer(model.parameters())
        start, _ = order.piece(2, replica)
        for step in range(3):
            (rows,) = order.rows(step, 2, replica)
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                model(x[start + rows.index]), y[start + rows.index]
            ).backward()
            optimizer.step()
        first, last = balanced(5, 2, replica)
        for name, parameter in model.named_parameters():
            mean[name] = mean.get(name, 0) + parameter.detach() * ((last - first) / 5)
    for name, value in mean.items():
        np.testing.assert_allclose(got.state[f"parameter:{name}"], value, atol=1e-12)


def test_the_outer_optimizer_is_nesterov_of_what_the_average_has_moved() -> None:
    # After every single step of SGD, what the average has moved is lr times the gradient.
    nesterov = partial(torch.optim.SGD, lr=0.7 * 0.05, momentum=0.9, nesterov=True)
    want = run_on_threads(workload(optimizer=nesterov), "serial", STEPS)
    assert_same(run_on_threads(workload(), "data=2", STEPS, sync_every=1, outer="nesterov"), want)


def test_norms_keep_their_own_statistics_and_average_the_running_ones() -> None:
    work = network(12, 6)
    got = run_on_threads(work, "data=2", 4, sync_every=2)
    assert_bytes(got)
    assert got.plan.option("batch_norm", "synchronized") == "local"
    assert {"norm.running_mean", "norm.running_var"} == {
        name for bucket in got.plan.averaged for name in bucket.names if name.startswith("norm.r")
    }
    both = run_on_threads(work, "data=2", 4, sync_every=1, batch_norm="synchronized")
    want = run_on_threads(
        network(12, 6), "serial", 4
    )  # momentum is each replica's own, and linear in the gradients
    assert_same(both, want)
    assert_bytes(both)


def test_a_run_that_is_stopped_between_two_averages_averages() -> None:
    got = run_on_threads(workload(), "data=2", 5, sync_every=4, stop_at_start=0)
    assert got.outcomes[0].stopped
    assert_bytes(got)


@pytest.mark.parametrize("strategy", ["data=2", "data=2,tensor=2"])
def test_replicas_of_their_own_limit_their_own_gradients(strategy: str) -> None:
    work = workload(clip_norm=0.1)
    got = run_on_threads(work, strategy, 3, sync_every=2)
    assert_bytes(got)
    alike = run_on_threads(work, "data=2", 3, sync_every=2)
    assert_same(got, alike)
    assert np.abs(got.losses - run_on_threads(workload(), "data=2", 3, sync_every=2).losses).max()


def test_compression_is_for_the_axis_data_alone() -> None:
    work = workload()
    for strategy in ("serial", "tensor=2"):
        alone = wb.plan(work, strategy).bytes_per_step
        assert wb.plan(work, strategy, compression="bf16").bytes_per_step == alone


@pytest.mark.parametrize(
    ("strategy", "options", "sentence"),
    [
        ("data=2", {"compression": "zip"}, "'none' or 'bf16' or 'powersgd' or 'topk'"),
        ("data=2", {"powersgd_rank": 2}, "leave powersgd_rank out"),
        ("data=2", {"compression": "powersgd", "powersgd_rank": 0}, "whole number, 1 or more"),
        ("data=2", {"compression": "topk", "topk_ratio": 1.5}, "more than 0 and at most 1"),
        ("data=2", {"compression": "topk", "topk_ratio": "all"}, "more than 0 and at most 1"),
        ("data=2", {"sync_every": 0}, "whole number, 1 or more"),
        ("data=2", {"sync_every": 2, "compression": "bf16"}, "use one of the two"),
        ("data=2", {"outer": "nesterov"}, "ask for sync_every=8, say"),
        ("data=2", {"sync_every": 2, "outer_lr": 0.5}, "leave outer_lr out"),
        ("data=2", {"sync_every": 2, "outer": "nesterov", "outer_lr": 0}, "more than 0"),
        ("data=2", {"sync_every": 2, "outer": "nesterov", "outer_momentum": 1}, "less than 1"),
        ("sharded=2", {"compression": "topk"}, "use data=2, or data=2,sharded=2"),
        ("data=2,sharded=2", {"sync_every": 2, "stage": 1}, "use stage=2, or stage=3"),
    ],
)
def test_what_makes_no_sense_is_refused(
    strategy: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PlanError, match=sentence):
        wb.plan(workload(), strategy, **options)


def test_a_proof_of_one_pass_takes_no_option_of_steps() -> None:
    with pytest.raises(PlanError, match="leave sync_every out"):
        wb.verify(nn.Linear(2, 2), torch.ones(2, 2), strategy="data=2", sync_every=2)


@pytest.mark.timeout(90)
def test_a_comparison_calls_it_different_by_design(lab: Lab, tmp_path: Path) -> None:
    work = workload(8, 24).with_(dtype="float32")
    how: dict[str, Any] = {"steps": 8, "repeats": 1, "folder": tmp_path, "lab": lab}
    table = wb.compare(work, ["data=2"], **how, compression="powersgd", powersgd_rank=2)
    row = table.rows[-1]
    assert row["same_result"] is False
    assert row["proof"] == "not by design: compression=powersgd"
    assert row["loss"] != table.rows[0]["loss"]
    run = table.runs[-1]
    assert {each["sent_bytes"] for each in run.history} == {run.plan.bytes_per_step}
    assert table.progress.done_steps == table.progress.total_steps
