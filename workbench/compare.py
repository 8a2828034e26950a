"""Compare strategies: start to time them against the serial run, and to prove their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.arguments import check_repeats, check_steps, check_threads
from workbench.comparison import Comparison
from workbench.cost import check_price
from workbench.errors import PlanError
from workbench.measured import WARM_UP_STEPS
from workbench.planning import plan as make_plan
from workbench.speedup import FEWEST_STEPS

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.plan import Plan
    from workbench.workload import Workload


def compare(
    work: Workload,
    strategies: Sequence[str],
    *,
    steps: int = 30,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "auto",
    prove: bool = True,
    preview: bool = False,
    spans: bool = False,
    folder: str | Path | None = None,
    lab: Lab | None = None,
    skip_refused: bool = False,
    price_per_worker_hour: float | None = None,
    wait: bool = True,
    on_change: Callable[[Comparison], None] | None = None,
    **options: Any,
) -> Comparison:
    """Time ``strategies`` against the serial run, in turn, ``repeats`` times each.

    Two baselines are always measured: one process with one thread, and one process with as many
    threads as the strategies have cores. After the first repeat every strategy's result is
    proved: five steps in float64, on the same ranks, against the serial run. A strategy that is not
    made to give that result (compressed gradients, steps of its own) is not: its row says so.

    Parameters
    ----------
    threads:
        Torch threads per rank of the strategies; those of the lab if left out.
    prove:
        Whether to prove the results (a few seconds).
    preview:
        Whether ``comparison.preview`` shows a picture that a model makes, now and then; it is sent
        between two steps and not timed.
    spans:
        Whether every strategy makes a few steps more, after its first timed run, of which
        ``comparison.timelines`` says what every rank did when. They are not timed.
    skip_refused:
        Whether strategies that cannot be done are left out, and listed in ``comparison.refused``
        with the reason, instead of being refused all together.
    price_per_worker_hour:
        What one worker, on which one rank runs, costs for an hour, in any currency; rows then say
        what an epoch costs.
    folder:
        Parent of the comparison's folder; ``workbench-runs`` if left out.
    wait:
        Whether to return at the end, or at once with a comparison that fills in the background.
    on_change:
        Called, on the background thread, when a run starts and when it ends.

    Raises
    ------
    PlanError
        If one of the strategies cannot be done, or none can, or ``folder`` cannot be written to;
        nothing is started.
    RunError
        If a run breaks, and ``wait`` is true.
    """
    from workbench.cluster.lab import current_lab

    lab = lab or current_lab()
    if isinstance(strategies, str):
        strategies = [strategies]
    plans, refused = planned(work, strategies, skip_refused, **options)
    comparison = Comparison(
        work,
        plans,
        refused=refused,
        serial=make_plan(work, "serial", **options),
        steps=check_steps(steps, WARM_UP_STEPS + FEWEST_STEPS),
        repeats=check_repeats(repeats),
        threads=check_threads(lab.threads if threads is None else threads),
        device=device,
        prove=prove,
        preview=preview,
        spans=spans,
        price_per_worker_hour=check_price(price_per_worker_hour),
        folder=folder,
        lab=lab,
        on_change=on_change or (lambda _comparison: None),
    )
    comparison.start()
    if not wait:
        return comparison
    try:
        return comparison.wait()
    except KeyboardInterrupt:  # nobody else has a handle to stop it by
        comparison.stop()
        raise


def planned(
    work: Workload, strategies: Sequence[str], skip_refused: bool, **options: Any
) -> tuple[list[Plan], dict[str, str]]:
    """Return plans of ``strategies``, and with ``skip_refused`` why others cannot be done.

    Raises
    ------
    PlanError
        If one cannot, or with ``skip_refused`` if none can.
    """
    plans, refused = [], {}
    for strategy in strategies:
        try:
            plans.append(make_plan(work, strategy, **options))
        except PlanError as error:
            if not skip_refused:
                raise
            refused[strategy] = str(error)
    if refused and not plans:
        strategy, sentence = next(iter(refused.items()))
        raise PlanError(f"None of {len(refused)} strategies can be done. {strategy}: {sentence}")
    return plans, refused
