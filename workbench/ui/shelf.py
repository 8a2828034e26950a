"""What was measured, onto disk and back: what the panel's Export and Show earlier run do."""

from __future__ import annotations

from workbench.attached_run import OVER
from workbench.attaching import AttachedComparison, as_comparison, attach, followed
from workbench.errors import PlanError, RunError
from workbench.ui.exporting import export
from workbench.ui.form import Request
from workbench.ui.job import Job
from workbench.ui.language import text, translate
from workbench.ui.training import Training

EXPORTS = "workbench-exports"
"""Where files go if nothing else is typed."""


def write(job: Job | None, folder: str) -> str:
    """Write all that a job has measured to ``folder``, and return a sentence on that."""
    going = None if job is None else job.going
    of = going.run if isinstance(going, Training) else going
    if of is None:
        return text("keep.nothing")
    try:
        files = export(of, folder or EXPORTS)
    except (PlanError, RunError, OSError) as error:
        return translate(str(error))
    where = str(files[0].parent.resolve()) if files else folder
    return text("keep.exported", count=len(files), folder=where)


def read(path: str, number: int) -> tuple[Job | None, str]:
    """Return what was measured at ``path`` as a job of that number, and a sentence on it.

    An empty path is the newest; without anything there is no job.
    """
    try:
        found = attach(path or None)
        if isinstance(found, AttachedComparison):
            going = found
        else:  # of a run that goes on there may be too little to time
            going = as_comparison(found) if found.status in OVER else followed(found)
    except (PlanError, RunError, OSError) as error:
        return None, translate(str(error))
    facts = going.facts
    asked = Request(facts.name, (), 1, facts.batch_size, going.steps, max(1, going.repeats))
    where = str(going.folder or path)
    return Job(number, asked, "attached", going=going), text("keep.attached", folder=where)
