"""Loss and accuracy of a trained model on other data, on the workers where both lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import cloudpickle

from workbench.errors import PlanError, RunError
from workbench.given import by_share_name, listed
from workbench.mesh import balanced

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.run import Run
    from workbench.scoring import Score


SCORE_LIMIT_S = 3600.0


def evaluate(
    run: Run | nn.Module,
    data: tuple[Any, Any] | None = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    batch_size: int | None = None,
) -> Score:
    """Score a model: loss, accuracy and confusion table; nothing is gathered.

    Parameters
    ----------
    run:
        A run that has ended, which is scored on as many ranks as it had; or a model in eval mode,
        which is scored where the chunks of the data are.
    data:
        ``(x, y)``, dask arrays, numpy arrays or tensors; the workload's test data if left out. Each
        rank, or task, scores its own piece. For a model of several inputs ``x`` is a tuple of
        arrays, or of a run what its workload has.
    loss:
        Of a model: takes outputs and targets; cross entropy if left out. A run has its own.
    batch_size:
        Of a model: samples in one pass.

    Raises
    ------
    PlanError
        If there is no data, or it does not fit; if a model is in training mode.
    RunError
        If the run has kept no weights, or scoring breaks.
    """
    from torch.nn import Module

    if isinstance(run, Module):
        return _evaluate_model(run, data, loss, batch_size)
    if loss is not None or batch_size is not None:
        raise PlanError(
            "evaluate(run) takes the loss of the run's workload and sizes of its own; give loss "
            "and batch_size with a model."
        )
    from workbench.cluster.gang import Gang
    from workbench.scoring import ScoreJob, score_state

    state = {
        f"{kind}:{n}": a for kind in ("parameter", "buffer") for n, a in run.state(kind).items()
    }
    if data is None and run.work.test_data is None:
        raise PlanError(f"The workload {run.work.name!r} has no test data; give data=(x, y).")
    given = run.work.test_data if data is None else data
    work = run.work.with_(test_data=given)
    assert work.test_y is not None
    shapes = tuple(tuple(x.shape[1:]) for x in work.test_inputs)
    if shapes != work.sample_shapes:
        raise PlanError(
            f"Samples to score have shape {listed(shapes)}; the model has learned from "
            f"{listed(work.sample_shapes)}."
        )
    arrays = {**by_share_name(work.test_inputs, "test_"), "test_y": work.test_y}
    hosts = run.lab.hosts_for(run.plan.ranks)
    shares = []
    for rank, host in enumerate(hosts):
        start, stop = balanced(len(work.test_y), len(hosts), rank)
        mine = {**{name: array[start:stop] for name, array in arrays.items()}, **state}
        placed = run.lab.place(list(mine.values()), [host] * len(mine))
        shares.append(dict(zip(mine, placed, strict=True)))
    gang = Gang(
        run.lab,
        run_id=f"score-{uuid4().hex[:8]}",
        size=len(hosts),
        threads=run.threads,
        device=run.device,
        target=score_state,
        job=cloudpickle.dumps(ScoreJob(work.payload(), run.plan)),
        shares=shares,
        on_message=lambda _rank, _kind, _data: None,
        on_end=lambda _end: None,
    )
    gang.start()
    try:
        end = gang.join(SCORE_LIMIT_S)
    except BaseException:  # Ctrl-C, or too late: the workers must come free
        gang.kill("Scoring was interrupted")
        raise
    if end.error is not None:
        raise end.error
    found: Any = end.results[0]
    if found is None:
        raise RunError("Scoring ended without a result.")
    score: Score = found
    return score


def _evaluate_model(
    model: nn.Module,
    data: tuple[Any, Any] | None,
    loss: Callable[..., Tensor] | None,
    batch_size: int | None,
) -> Score:
    from workbench.arrays.marking import cross_entropy, score_arrays

    if data is None:
        raise PlanError(f"evaluate({type(model).__name__}) needs data=(x, y).")
    return score_arrays(model, data, loss or cross_entropy(), batch_size)
