"""Checkpoints of runs whose ranks were threads: written and read as the workers do it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rank_threads import ThreadRun

from workbench.checkpoint import folder, manifest
from workbench.checkpoint.fitting import facts
from workbench.checkpoint.loading import needed
from workbench.checkpoint.parts import write_part
from workbench.checkpoint.reading import read_shares
from workbench.checkpoint.saving import manifest_of, part_name
from workbench.workload import Workload


def save_threads(run: ThreadRun, work: Workload, target: Path) -> None:
    """Save a run whose ranks were threads of this process, as workers save theirs."""
    kept: dict[str, dict[int, Any]] = {}
    for rank, outcome in enumerate(run.outcomes):
        for name, value in outcome.kept.items():
            kept.setdefault(name, {})[rank] = value
    ended = SimpleNamespace(
        plan=run.plan, work=work, kept=kept, threads=1, first_step=0, step=len(run.losses)
    )
    made = manifest_of(ended)  # type: ignore[arg-type]
    with folder.beside(target, 0) as new:
        token = folder.probe(new)
        files = {
            part_name(rank): write_part(str(new), token, part_name(rank), "here", outlet.kept)
            for rank, outlet in enumerate(run.outlets)
            if outlet.kept
        }
        folder.seal(new, made(facts(work).said, files), {})
        folder.commit(new, target)


def read_all(place: Path, planned: Any) -> list[dict[str, Any]]:
    """Return what each rank of a plan reads; the first verifies all files."""
    content = manifest.read(place)
    return [
        read_shares(str(place), "here", content.files if rank == 0 else {}, wanted)
        for rank, wanted in enumerate(needed(content, planned))
    ]
