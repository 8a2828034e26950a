"""What was measured, onto disk and back: what the panel's Export and Show earlier run do."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from workbench.attached_run import OVER
from workbench.attaching import AttachedComparison, as_comparison, attach, followed
from workbench.errors import PlanError, RunError
from workbench.gathered import Gathered
from workbench.records import COMPARISON, DEFAULT_FOLDER, RUN
from workbench.ui.exporting import export
from workbench.ui.form import Request
from workbench.ui.job import Job
from workbench.ui.language import Say, text, translate
from workbench.ui.training import Training

EXPORTS = "workbench-exports"
"""Where files go if nothing else is typed."""

LOOK_EVERY_S = 2.0
MOST_LISTED = 40
"""Earlier runs to choose from, the newest."""


def write(job: Job | None, folder: str) -> Say:
    """Write all that a job has measured to ``folder``, and return what tells of that."""
    going = None if job is None else job.going
    if going is None or (isinstance(going, Training) and going.run is None):
        return partial(text, "keep.nothing")
    target = Path(folder or EXPORTS)
    try:
        if not isinstance(going, Training):
            files = export(going, target)
        elif len(going.segments) == 1:
            files = export(going.run, target)
        else:  # a folder for each strategy that has trained the model, in turn
            trained = [run for run in going.segments if run.history]
            targets = [target / f"{n}-{run.plan.strategy}" for n, run in enumerate(trained, 1)]
            pairs = zip(trained, targets, strict=True)
            files = [file for run, each in pairs for file in export(run, each)]
    except (PlanError, RunError, OSError) as error:
        return partial(translate, str(error))
    where = Path(os.path.commonpath([file.parent for file in files])) if files else target
    return partial(text, "keep.exported", count=len(files), folder=str(where.resolve()))


class Earlier:
    """The folders of the newest runs and comparisons, the newest first.

    Attributes
    ----------
    folders:
        Their names below the default folder, as of the last look.
    """

    def __init__(self) -> None:
        self.folders: tuple[str, ...] = ()
        self._looked_s = 0.0

    def look(self) -> None:
        """Look again, if the last look was a while ago."""
        if time.monotonic() - self._looked_s > LOOK_EVERY_S:
            self.folders, self._looked_s = _listed(), time.monotonic()


def _listed() -> tuple[str, ...]:
    try:
        names = sorted((each.name for each in os.scandir(DEFAULT_FOLDER)), reverse=True)
    except OSError:
        return ()
    found = (
        name
        for name in names
        if any(Path(DEFAULT_FOLDER, name, file).is_file() for file in (RUN, COMPARISON))
    )
    return tuple(islice(found, MOST_LISTED))


def read(paths: Sequence[str], number: int) -> tuple[Job | None, Say]:
    """Return what was measured at ``paths`` as a job of that number, and what tells of it.

    An empty path is the newest; several are shown side by side. Without anything there is no job.
    """
    path = paths[0] if paths else ""
    try:
        found = attach(path or None)
        if len(paths) > 1:
            found = Gathered([attach(each) for each in paths])
        if isinstance(found, AttachedComparison):
            going = found
        else:  # of a run that goes on there may be too little to time
            going = as_comparison(found) if found.status in OVER else followed(found)
    except (PlanError, RunError, OSError) as error:
        return None, partial(translate, str(error))
    facts = going.facts
    asked = Request(facts.name, (), 1, facts.batch_size, going.steps, max(1, going.repeats))
    where = ", ".join(paths) if len(paths) > 1 else str(going.folder or path)
    said = partial(text, "keep.attached", folder=where)
    return Job(number, asked, "attached", going=going), said
