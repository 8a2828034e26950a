"""Checkpoints of a run while it goes on, every so many steps, of which the newest few are kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from workbench.arguments import check_count
from workbench.checkpoint import folder, plain
from workbench.checkpoint.saving import Holder, needed_bytes, save
from workbench.checkpoint.tasks import limit_s
from workbench.errors import PlanError, RunError
from workbench.placement import kept_arrays
from workbench.snapshots import mark

if TYPE_CHECKING:
    import dask.array as da
    from distributed import Future

    from workbench.cluster.lab import Lab
    from workbench.plan import Plan
    from workbench.workload import Workload


class Going(Protocol):
    """What is asked of a run that goes on: see :class:`workbench.run.Run`."""

    work: Workload
    plan: Plan
    lab: Lab
    threads: int
    first_step: int
    run_id: str
    ranks: Any


class Snapshot:
    """What a run had come to after some steps, as its ranks have left it on their workers.

    A :class:`workbench.checkpoint.saving.Holder`; ``kept`` has shapes and dtypes by name and rank.
    """

    status = "running"

    def __init__(
        self, run: Going, step: int, kept: Mapping[str, Mapping[int, tuple[tuple[int, ...], str]]]
    ) -> None:
        self.work, self.plan, self.lab, self.threads = run.work, run.plan, run.lab, run.threads
        self.first_step, self.step, self.ranks, self.kept = 0, step, run.ranks, kept
        self.label = f"{run.plan.strategy} at step {step}"
        self._run_id = run.run_id
        self._taken: dict[tuple[int, str], Future] = {}

    def state(self, kind: str) -> dict[str, da.Array]:
        """Return what is kept of ``kind`` as dask arrays."""
        return kept_arrays(self.plan, self.kept, kind, self.take)

    def take(self, rank: int, name: str) -> Future:
        """Return the future of an array; Dask frees the array with it."""
        if (rank, name) not in self._taken:
            worker, there = self.ranks[rank].worker, mark(self.step) + name
            self._taken[rank, name] = self.lab.kept(self._run_id, rank, there, worker)
        return self._taken[rank, name]


class Periodic:
    """Saves a run to a folder of checkpoints while it goes on, and when it ends.

    Attributes
    ----------
    every:
        Steps between two checkpoints.
    saved:
        The checkpoints of this run that are there, the newest last.
    error:
        Why the last one could not be written; None if it could. The run goes on without it.

    Parameters
    ----------
    to:
        A folder; each checkpoint is one in it, named by its step: ``step-00000200``.
    keep:
        How many valid ones stay; an older one goes when a newer one is complete.

    Raises
    ------
    PlanError
        If a number is none, or the folder cannot be one of checkpoints.
    """

    def __init__(self, to: object, every: object, keep: object, plan: Plan) -> None:
        self.every = check_count("checkpoint_every", every, "a whole number of steps, 1 or more")
        self.keep = check_count("checkpoint_keep", keep, "a whole number, 1 or more")
        self.folder = _checked(to)
        if plan.averaging is not None and self.every % plan.period:
            raise PlanError(
                f"checkpoint_every={self.every} falls between two averages of the replicas, which "
                f"are then not one model; use a multiple of sync_every={plan.period}."
            )
        self.saved: tuple[Path, ...] = ()
        self.error: PlanError | RunError | OSError | None = None
        self._parts: dict[int, dict[int, Mapping[str, tuple[tuple[int, ...], str]]]] = {}
        self._waiting: SimpleQueue[Snapshot | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def receive(
        self, run: Going, rank: int, data: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        """Take the word of a rank that it has kept a copy; when all have, it is written.

        ``tell`` tells the ranks when that is done. Returns at once; one thread calls this.
        """
        step, parts = data["step"], self._parts.setdefault(data["step"], {})
        parts[rank] = data["kept"]
        if len(parts) < run.plan.ranks:
            return
        self._parts.clear()  # older ones are not complete and never will be
        kept: dict[str, dict[int, tuple[tuple[int, ...], str]]] = {}
        for number in sorted(parts):
            for name, found in parts[number].items():
                kept.setdefault(name, {})[number] = found
        self._waiting.put(Snapshot(run, step, kept))
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write, args=[tell], name=f"checkpoints {run.run_id}", daemon=True
            )
            self._thread.start()

    def finish(self, run: Holder) -> None:
        """Wait for what is being written, and save what the run has come to, if it has ended well.

        Does not raise: what went wrong is :attr:`error`.
        """
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(2 * limit_s(needed_bytes(run.kept)))
        if run.kept:
            self._save(run)

    def _write(self, tell: Callable[[str], None]) -> None:
        while (snapshot := self._waiting.get()) is not None:
            step = snapshot.step
            self._save(snapshot)
            del snapshot  # and with it the copies on the workers
            with suppress(RunError):  # the ranks may have ended
                tell(f"written {step}")

    def _save(self, run: Holder) -> None:
        target = self.folder / folder.name_of(run.first_step + run.step)
        try:
            save(run, target)
            for path in folder.valid_in(self.folder)[self.keep :]:
                shutil.rmtree(path, ignore_errors=True)
            self.saved = tuple(path for path in (*self.saved, target) if path.exists())
            self.error = None
        except (PlanError, RunError, OSError) as error:
            self.error = error
        except Exception as error:
            self.error = RunError(f"{target} could not be written: {type(error).__name__}: {error}")


def _checked(to: object) -> Path:
    """Return the folder that a user means, which need not be there."""
    place = folder.target_of(to, "checkpoint_to=")
    if plain.is_plain(place):
        raise PlanError(
            f"checkpoint_to={str(to)!r} is to be a folder of checkpoints, not one file of weights; "
            f"give a folder, such as {place.stem!r}."
        )
    if place.exists() and not place.is_dir():
        raise PlanError(f"{place} is a file, and checkpoint_to= is a folder; give another path.")
    if folder.is_checkpoint(place):
        raise PlanError(
            f"{place} is a checkpoint itself, and checkpoint_to= is a folder that holds several; "
            f"give another, such as {str(place.with_name(place.name + '-checkpoints'))!r}."
        )
    folder.check_writable(place / "step")
    return place
