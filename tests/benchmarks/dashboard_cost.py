"""Time what an open page of the dashboard costs a run; run by hand.

    python tests/benchmarks/dashboard_cost.py --repeats 7 [--page individual-workbench-timeline]

The same run by turns with the page closed and open (a session as a browser has one, that takes all
that is drawn and draws nothing). Prints the median of the ratios of step times within a turn, with
minimum and maximum. Close everything else that uses the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from statistics import median

from bokeh.client import pull_session

import workbench as wb
from workbench.machine import describe


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--strategy", default="data=2")
    options.add_argument("--page", default="workbench")
    asked = options.parse_args()
    work = wb.workload("digits-cnn")
    ratios = []
    with wb.start(workers=2, threads=1) as lab, tempfile.TemporaryDirectory() as folder:

        def step_s() -> float:
            run = wb.run(work, asked.strategy, steps=asked.steps, folder=folder).wait()
            return run.step_s

        step_s()  # warms up
        for _ in range(asked.repeats):
            closed_s = step_s()
            session = pull_session(url=lab.dashboard_link.replace("status", asked.page))
            try:
                ratios.append(step_s() / closed_s)
            finally:
                session.close()
    print(describe())
    print(
        f"{asked.strategy} with /{asked.page} open: {median(ratios) - 1:+.1%} time per step "
        f"({min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}, {asked.repeats} turns)"
    )


if __name__ == "__main__":
    main()
