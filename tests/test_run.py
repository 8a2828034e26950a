"""Runs on a real cluster: what they give, how they stop, how they break."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import Tensor, nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.placement import Placement
from workbench.records import read
from workbench.run import Run
from workbench.workload import Workload

pytestmark = pytest.mark.timeout(90)


class Slow(nn.Module):
    """Takes its time in every forward pass, so that a test can act in the middle of a run."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.layer, self.pause_s = nn.Linear(4, 3), pause_s

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            time.sleep(self.pause_s)
        return self.layer(x)


def workload(pause_s: float = 0.0, model: Any = None, **changes: Any) -> Workload:
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "model": model or Slow(pause_s),
        "data": (source.normal(size=(50, 4)), source.integers(0, 3, 50)),
        "test_data": (source.normal(size=(21, 4)), source.integers(0, 3, 21)),
        "batch_size": 8,
        "dtype": "float64",
    }
    return Workload(**{**values, **changes})


def until(condition: Any, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_run_on_processes_equals_the_run_on_threads(lab: Lab, tmp_path: Path) -> None:
    work = workload()
    run = wb.run(work, "data=2", steps=9, folder=tmp_path)
    assert run.wait(60) is run
    threads = run_on_threads(work, "data=2", 9)
    np.testing.assert_array_equal([row["loss"] for row in run.history], threads.losses)
    for name, array in run.parameters.items():
        np.testing.assert_array_equal(array.compute(), threads.state[f"parameter:{name}"])
    assert run.status == "done"
    assert run.backend == "shared memory"
    assert [info.rank for info in run.ranks] == [0, 1]
    assert len({info.worker for info in run.ranks}) == 2
    assert {row["sent_bytes"] for row in run.history} == {run.plan.bytes_per_step}
    assert {span["rank"] for span in run.spans} == {0, 1}
    assert run.accuracy == threads.outcomes[0].score.accuracy  # type: ignore[union-attr]


def test_the_folder_holds_the_exact_records(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(), "data=2", steps=7, folder=tmp_path).wait(60)
    summary, steps = read(run.folder)
    assert steps == run.history
    assert summary["status"] == "done"
    assert summary["strategy"] == "data=2"
    assert run.folder.parent == tmp_path
    again = wb.run(workload(), "serial", steps=1, folder=tmp_path).wait(60)
    assert again.folder != run.folder


def test_evaluate_scores_where_the_weights_are(lab: Lab, tmp_path: Path) -> None:
    work = workload()
    run = wb.run(work, "data=2", steps=5, folder=tmp_path).wait(60)
    score = wb.evaluate(run)
    assert score.samples == 21
    assert score.accuracy == run.accuracy
    model = work.make_model()
    model.load_state_dict(
        {name: torch.from_numpy(a.compute()) for name, a in run.parameters.items()}
    )
    x, y = np.random.default_rng(5).normal(size=(13, 4)), np.arange(13) % 3
    mine = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
    assert wb.evaluate(run, (x, y)).loss == pytest.approx(mine.item(), rel=1e-12)
    with pytest.raises(wb.PlanError, match="Samples to score have shape"):
        wb.evaluate(run, (x[:, :3], y))


@pytest.mark.parametrize("pause_s", [0.02, 1e9], ids=["between steps", "in endless user code"])
def test_a_run_stops_within_two_seconds_and_the_cluster_is_free(
    lab: Lab, tmp_path: Path, pause_s: float
) -> None:
    run = wb.run(workload(pause_s), "data=2", steps=10_000, folder=tmp_path)
    until(lambda: run.status == "running")
    if pause_s < 1:
        until(lambda: run.step > 3)
    pids = [info.pid for info in run.ranks]
    run.stop()
    run.wait(5)
    assert run.status == "stopped"
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 2)
    assert wb.run(workload(), "data=2", steps=2, folder=tmp_path).wait(60).status == "done"


def test_a_run_pauses_makes_single_steps_and_stops_while_it_is_paused(
    lab: Lab, tmp_path: Path
) -> None:
    run = wb.run(workload(0.02), "data=2", steps=10_000, folder=tmp_path)
    with pytest.raises(wb.RunError, match=r"single steps are made of a paused one: run.pause"):
        run.advance()
    run.pause()
    assert run.status == "paused"
    steps = run.step
    time.sleep(0.3)
    assert (run.status, run.step) == ("paused", steps)
    assert run.advance(3).step == steps + 3
    assert run.pause().advance().step == steps + 4
    with pytest.raises(wb.PlanError, match="steps=0"):
        run.advance(0)
    run.resume()
    assert run.status == "running"
    until(lambda: run.step > steps + 8)
    pids = [info.pid for info in run.pause().ranks]
    began_s = time.monotonic()
    run.stop()
    assert time.monotonic() - began_s < 2
    run.wait(5)
    assert run.status == "stopped"
    assert run.parameters["layer.weight"].compute().shape == (3, 4)  # it ended in good order
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 2)
    with pytest.raises(wb.RunError, match="takes no more commands: it is stopped"):
        run.pause()


def test_replicas_that_average_seldom_do_so_when_they_are_stopped_in_a_pause(
    lab: Lab, tmp_path: Path
) -> None:
    work = workload(0.02)
    run = wb.run(work, "data=2", steps=1000, folder=tmp_path, sync_every=7).pause()
    run.advance(3 - run.step % 7 + 7)
    run.stop()
    again = wb.run(work, "data=2", steps=run.step, folder=tmp_path, sync_every=7).wait(60)
    for name, array in run.parameters.items():
        np.testing.assert_array_equal(array.compute(), again.parameters[name].compute())


def test_a_run_can_be_stopped_while_it_starts(lab: Lab, tmp_path: Path) -> None:
    for delay_s in (0.0, 0.05, 0.2):
        run = wb.run(workload(0.01), "data=2", steps=10_000, folder=tmp_path)
        time.sleep(delay_s)
        run.stop()
        run.wait(5)
        assert run.status == "stopped"


def test_a_killed_rank_is_one_clear_sentence(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(0.01), "data=2", steps=10_000, folder=tmp_path)
    until(lambda: run.step > 3)
    os.kill(run.ranks[1].pid, signal.SIGKILL)
    with pytest.raises(wb.RunError, match=r"[Rr]ank 1") as caught:
        run.wait(10)
    assert caught.value.rank == 1
    assert caught.value.step is not None
    assert "finished steps" in str(caught.value)
    assert run.status == "failed"
    summary, steps = read(run.folder)
    assert summary["error"] == str(caught.value)
    assert len(steps) == run.step > 3
    assert wb.run(workload(), "data=2", steps=2, folder=tmp_path).wait(60).status == "done"


class Raises(nn.Module):
    """Fails in training, with a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta and x.shape[0] != 3:
            raise ValueError("the moon is in the wrong quarter")
        return self.layer(x)


def test_an_error_in_the_model_names_itself(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(model=Raises()), "data=2", steps=5, folder=tmp_path)
    with pytest.raises(wb.RunError, match="moon is in the wrong quarter") as caught:
        run.wait(30)
    assert "Raises" in caught.value.details or "forward" in caught.value.details


def test_a_diverging_run_says_at_which_step(lab: Lab, tmp_path: Path) -> None:
    work = workload(optimizer=partial(torch.optim.SGD, lr=1e308))
    with pytest.raises(wb.RunError, match="not a number any more at step"):
        wb.run(work, "data=2", steps=9, folder=tmp_path).wait(30)


NAN = np.full((50, 4), np.nan)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": (NAN, np.arange(50) % 3)}, "NaN|nan"),
        ({"data": (np.ones((50, 4)), np.arange(50))}, "label"),
    ],
    ids=["NaN", "label out of range"],
)
def test_bad_values_are_found_on_the_workers_before_a_rank_starts(
    lab: Lab, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    run = wb.run(workload(**changes), "data=2", steps=5, folder=tmp_path)
    with pytest.raises(wb.PlanError, match=says):
        run.wait(30)
    assert run.ranks == ()
    assert run.status == "failed"


@pytest.mark.parametrize(
    ("strategy", "options", "says"),
    [
        ("data=3", {}, "3 ranks need 3 workers.*has 2"),
        ("data=9", {}, "batch of 8"),
        ("rows=2", {}, "not a strategy"),
        ("data=2", {"steps": 0}, "steps=0"),
        ("data=2", {"threads": -1}, "threads=-1"),
        ("data=2", {"device": "tpu"}, "device"),
        ("data=2", {"device": "cuda"}, "device='cuda' needs a GPU"),
        ("data=2", {"accumulate": 9}, "accumulate=9"),
        ("data=2", {"batch_norm": "none"}, "batch_norm='none'"),
        ("data=2", {"colour": "red"}, "no option 'colour'"),
    ],
)
def test_nonsense_is_refused_before_anything_starts(
    lab: Lab, tmp_path: Path, strategy: str, options: dict[str, Any], says: str
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(wb.PlanError, match=says):
        wb.run(workload(), strategy, folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_second_run_at_once_is_refused(lab: Lab, tmp_path: Path) -> None:
    first = wb.run(workload(0.01), "data=2", steps=10_000, folder=tmp_path)
    until(lambda: first.step > 1)
    with pytest.raises(wb.RunError, match="still going; stop it first"):
        wb.run(workload(), "serial", steps=2, folder=tmp_path).wait(30)
    first.stop()
    assert first.wait(5).status == "stopped"


def test_waiting_has_a_limit_and_parameters_an_owner(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(0.05), "serial", steps=10_000, folder=tmp_path)
    with pytest.raises(TimeoutError, match=r"run\.stop\(\)"):
        run.wait(0.2)
    with pytest.raises(wb.RunError, match="has no parameters to give"):
        run.parameters  # noqa: B018 - the property raises
    run.stop()
    json.dumps(run.summary())


def test_a_folder_that_cannot_be_written_to_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", "/proc/nothing", 3):
        with pytest.raises(wb.PlanError, match="cannot hold the records"):
            wb.run(workload(), "serial", steps=1, folder=folder)  # type: ignore[arg-type]


def test_a_run_whose_folder_vanishes_still_ends(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(0.01), "serial", steps=40, folder=tmp_path)
    until(lambda: run.step > 1)
    shutil.rmtree(run.folder)
    with pytest.raises(wb.RunError, match="records of the run could not be written"):
        run.wait(30)
    assert run.parameters


def test_stopping_from_many_threads_at_any_time_ends_in_one_state(lab: Lab, tmp_path: Path) -> None:
    for steps in (20, 200):
        run = wb.run(workload(), "serial", steps=steps, folder=tmp_path)
        threads = [threading.Timer(n / 20, run.stop) for n in range(8)]
        for thread in threads:
            thread.start()
        run.wait(30)
        for thread in threads:
            thread.join()
        assert run.status in ("done", "stopped")


def test_stop_after_the_end_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    run = wb.run(workload(), "serial", steps=1, folder=tmp_path)
    run._ended.wait = lambda timeout=None: True  # type: ignore[method-assign]
    until(lambda: run.status in ("done", "failed"))
    run.stop()  # the records may still be being written
    assert run.status == "done"


def test_what_a_forgotten_run_has_kept_is_freed(lab: Lab, tmp_path: Path) -> None:
    from workbench.cluster.rank_host import host_of

    def kept(lab_id: str, run_id: str, dask_worker: Any) -> int:
        return sum(len(s.kept) for s in host_of(dask_worker, lab_id)._seats_of(run_id))

    run: Any = wb.run(workload(), "serial", steps=1, folder=tmp_path).wait(30)
    name, worker = run.run_id, run.ranks[0].worker
    assert lab.ask(kept, lab.id, name, workers=[worker]) == {worker: 7}  # and 3 generators
    del run
    until(lambda: gc.collect() >= 0 and lab.ask(kept, lab.id, name, workers=[worker])[worker] == 0)


def test_parameters_outlive_the_run_that_made_them(lab: Lab, tmp_path: Path) -> None:
    for _ in range(3):
        arrays = wb.run(workload(), "serial", steps=1, folder=tmp_path).wait(30).parameters
        gc.collect()
        assert {a.compute().shape for a in arrays.values()} == {(3, 4), (3,)}


def test_labels_are_checked_against_the_output_and_not_the_last_layer(
    lab: Lab, tmp_path: Path
) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * torch.sigmoid(self.gate(x))

    assert wb.run(workload(model=Gated()), "serial", steps=1, folder=tmp_path).wait(30).step == 1
    bad = workload(model=Gated(), data=(np.ones((50, 4)), np.arange(50) % 4))
    with pytest.raises(wb.PlanError, match="the model gives 3 classes"):
        wb.run(bad, "serial", steps=1, folder=tmp_path).wait(30)


def test_a_closed_lab_is_one_clear_sentence(tmp_path: Path) -> None:
    with wb.start(workers=1) as own:
        done = wb.run(workload(), "serial", steps=1, folder=tmp_path, lab=own).wait(30)
        run = wb.run(workload(0.01), "serial", steps=10_000, folder=tmp_path, lab=own)
        until(lambda: run.step > 1)
    with pytest.raises(wb.RunError, match="lab was closed"):
        run.wait(10)
    for use in (lambda: done.parameters, lambda: wb.evaluate(done)):
        with pytest.raises(wb.RunError, match=r"lab.*is closed"):
            use()
    assert done.step == 1


def test_a_worker_that_dies_while_data_is_placed_is_noticed(tmp_path: Path) -> None:
    import dask.array as da

    def slow(block: Any) -> Any:
        if block.size:  # not while dask looks at what it gives
            time.sleep(1.0)
        return block

    x = da.ones((40, 4), chunks=(4, 4)).map_blocks(slow, dtype="f8")
    work = workload(data=(x, np.arange(40) % 3), test_data=None)
    with wb.start(workers=2) as own:
        placement = Placement(own)
        placement.check = lambda *_: None  # type: ignore[method-assign]  # placing starts at once
        pids = own.client.run(os.getpid)
        run = Run(
            work,
            wb.plan(work, "data=2"),
            steps=1,
            threads=1,
            device="auto",
            record_spans=False,
            folder=tmp_path,
            placement=placement,
        )
        run.start()
        time.sleep(0.5)
        os.kill(pids[own.hosts[1].worker], signal.SIGKILL)
        with pytest.raises(wb.RunError, match=r"worker of rank 1 .* died"):
            run.wait(10)
