"""Save a run: every worker writes what its rank has kept, and one rename makes it a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workbench.checkpoint import fitting, folder, plain
from workbench.checkpoint.manifest import DTYPES, File, Manifest, Stored
from workbench.checkpoint.parts import write_part
from workbench.checkpoint.pieces import held, shape_of, whole_shape
from workbench.checkpoint.tasks import finish, limit_s
from workbench.errors import PlanError, RunError
from workbench.resuming import Ended, check_kept

if TYPE_CHECKING:
    from distributed import Future

    from workbench.cluster.lab import Lab
    from workbench.plan import Plan

Kept = Mapping[str, Mapping[int, tuple[tuple[int, ...], str]]]


class Holder(Ended, Protocol):
    """A run whose state lies on the workers of a lab."""

    lab: Lab
    threads: int
    ranks: Any

    def take(self, rank: int, name: str) -> Future:
        """Return the future of an array that a rank has kept."""


def save(run: Holder, path: str | Path) -> Path:
    """Save a run that has ended: all that another needs to go on from it, exactly.

    All workers write at the same time, each its own shares, so ``path`` must be on a file system
    that they and you share. It becomes a folder; a checkpoint that was there is replaced when the
    new one is complete, at one stroke. A path that ends in ``.safetensors`` becomes one file
    instead, with the weights alone: a plain ``state_dict``.

    Parameters
    ----------
    run:
        A run that has ended, by itself or by ``stop()``, or one that was loaded.

    Returns
    -------
    The absolute path.

    Raises
    ------
    PlanError
        If the path cannot be written, holds something else, or is not seen by a worker.
    RunError
        If the run has nothing to save, or writing fails: what was there before is untouched.
    """
    target = folder.target_of(path, "save")
    run.state("parameter")  # refused here if it has none
    if plain.is_plain(target):
        return plain.save(run, target)
    check_kept(run.kept, "A checkpoint")
    check_target(target)
    content = manifest_of(run)
    by_rank: dict[int, list[str]] = {}
    for name, ranks in run.kept.items():
        for rank in ranks:
            by_rank.setdefault(rank, []).append(name)
    workers = {rank: run.ranks[rank].worker for rank in by_rank}
    needed = needed_bytes(run.kept)
    client = run.lab.client
    with folder.beside(target, needed) as made:
        futures: list[Future] = []
        try:
            token = folder.probe(made)
            for rank, names in by_rank.items():
                arrays = {name: run.take(rank, name) for name in names}
                task = client.submit(
                    write_part,
                    str(made),
                    token,
                    part_name(rank),
                    workers[rank],
                    arrays,
                    workers=[workers[rank]],
                    allow_other_workers=False,
                    retries=0,
                    pure=False,
                )
                futures.append(task)
            said = fitting.facts(run.work).said  # while they write
            finish(futures, list(workers.values()), run.lab, limit_s(needed))
            written: list[File] = client.gather(futures)
            files = {part_name(rank): file for rank, file in zip(by_rank, written, strict=True)}
            folder.seal(made, content(said, files), made_by())
            folder.commit(made, target)
        except OSError as error:
            raise folder.no_room(target, needed, error) from error
        except BaseException:
            client.cancel(futures)
            raise
    return target


def check_target(path: str | Path) -> None:
    """Raise PlanError if :func:`save` would refuse a path, whatever the run."""
    target = folder.target_of(path, "save")
    if plain.is_plain(target):
        plain.check_target(target)
    else:
        folder.check_free(target)
    folder.check_writable(target)


def manifest_of(run: Holder) -> Callable[[Mapping[str, Any], Mapping[str, File]], Manifest]:
    """Return a function of what is said of the workload and of the files: the manifest of a run."""
    plan = run.plan
    arrays = {name: stored(plan, name, by_rank) for name, by_rank in run.kept.items()}

    def made(said: Mapping[str, Any], files: Mapping[str, File]) -> Manifest:
        return Manifest(
            workload=said,
            strategy=plan.strategy,
            options=fitting.options_of(plan),
            accumulate=plan.batch.accumulate,
            threads=run.threads,
            step=run.first_step + run.step,
            files=files,
            arrays=arrays,
        )

    return made


def stored(plan: Plan, name: str, by_rank: Mapping[int, tuple[tuple[int, ...], str]]) -> Stored:
    """Return what the manifest says of a kept array."""
    shapes = {rank: shape for rank, (shape, _) in by_rank.items()}
    dtype = next(iter(by_rank.values()))[1]
    if dtype not in DTYPES:
        raise PlanError(
            f"{name!r} is of {dtype}, which the files of safetensors that a checkpoint is made of "
            "cannot hold."
        )
    dims = len(next(iter(shapes.values())))
    shape = whole_shape(shapes, plan.kept_cuts(name, dims), plan.mesh)
    parts = {part_name(rank): held(plan, name, shape, rank) for rank in by_rank}
    for rank, piece in zip(by_rank, parts.values(), strict=True):
        if shape_of(piece) != shapes[rank]:
            raise RunError(f"Rank {rank} has kept {name!r} in another shape than the plan says.")
    return Stored(shape, dtype, parts)


def part_name(rank: int) -> str:
    """Return the name of the file that the worker of ``rank`` writes."""
    return f"part-{rank:05}.safetensors"


def needed_bytes(kept: Kept) -> int:
    """Return the bytes of kept arrays."""
    import numpy as np

    return sum(
        prod(shape) * np.dtype(dtype).itemsize
        for by_rank in kept.values()
        for shape, dtype in by_rank.values()
    )


def made_by() -> dict[str, str]:
    """Return the versions that stand in a manifest, for people."""
    from importlib.metadata import version

    from workbench import __version__

    return {"dask-workbench": __version__, "torch": version("torch")}
