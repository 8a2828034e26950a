"""Load a checkpoint: every worker reads the slices that its rank needs, whatever the strategy."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checkpoint import fitting, folder, manifest, plain
from workbench.checkpoint.manifest import Damaged, Manifest, Stored
from workbench.checkpoint.pieces import Piece, common, held, shape_of, volume, whole
from workbench.checkpoint.reading import Wanted, read_shares
from workbench.checkpoint.saved import Kept, SavedRun
from workbench.checkpoint.tasks import finish, limit_s
from workbench.errors import PlanError
from workbench.mesh import balanced
from workbench.plan import Plan, is_first, owner_of
from workbench.planning import plan as make_plan
from workbench.resuming import draws_on
from workbench.strategies.notation import parse

if TYPE_CHECKING:
    from distributed import Future

    from workbench.cluster.lab import Lab
    from workbench.workload import Workload


def load(
    path: str | Path,
    strategy: str | None = None,
    *,
    work: Workload | None = None,
    lab: Lab | None = None,
    threads: int | None = None,
    **options: Any,
) -> SavedRun:
    """Load what :func:`save` has written, onto the workers of the open cluster.

    Each worker reads only what its rank needs under ``strategy``, at the same time as the others;
    this process reads the manifest alone. Nothing of a checkpoint is executed.

    Parameters
    ----------
    path:
        The folder of a checkpoint, or one with several, as ``wb.run(..., checkpoint_to=)`` makes
        it, of which the newest valid one is taken; or a file of plain weights, ``.safetensors``,
        ``.pt`` or ``.pth``, whose names are those of the model's ``state_dict()``.
    strategy:
        The cut to load it in, any that the workload can have; the one that it was saved with if
        left out, with its options.
    work:
        The workload that it is of. A checkpoint holds no code and no data; one of a workload of
        the catalogue finds it by itself.
    lab:
        The cluster; the one opened last if left out.
    threads:
        Torch threads of every rank; those of the lab if left out.
    options:
        As for :func:`workbench.plan`.

    Returns
    -------
    The run as it was when it had ended: it has ``parameters``, can be given to ``wb.evaluate`` and
    ``wb.save``, and goes on with ``wb.run(saved.work, strategy, start=saved, **saved.options)``.

    Raises
    ------
    PlanError
        If it is not there, foreign, of a newer version, damaged, not complete, or of another
        workload: says which file and why, and offers the newest valid checkpoint beside it.
    RunError
        If a worker dies meanwhile.
    """
    from workbench.arguments import check_threads
    from workbench.cluster.lab import current_lab

    place = _place(path)
    lab = lab or current_lab()
    threads = check_threads(lab.threads if threads is None else threads)
    try:
        if plain.is_plain(place):
            return plain.load(place, strategy or "serial", work, lab, threads, options)
        content = manifest.read(place)
        if work is None:
            work = fitting.made_again(content)
        fitting.check_same(content, work)
        _check_model(content, work)
        planned = _planned(content, work, strategy, options)
        return _read(place, content, work, planned, lab, threads)
    except Damaged as error:
        raise PlanError(f"{error}{folder.offered(place)}") from error


def options_at(
    path: str | Path, strategy: str | None, options: dict[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """Return the strategy and options that :func:`load` takes where these are given.

    Raises
    ------
    PlanError
        As :func:`load`, from what the manifest says.
    """
    place = _place(path)
    if plain.is_plain(place):
        return strategy, options
    try:
        content = manifest.read(place)
    except Damaged as error:
        raise PlanError(f"{error}{folder.offered(place)}") from error
    return strategy or content.strategy, _chosen(content, strategy) | options


def _place(path: str | Path) -> Path:
    """Return the checkpoint that a user means; of a folder of several the newest valid one."""
    place = folder.target_of(path, "load")
    if not folder.is_checkpoint(place) and (several := folder.valid_in(place)):
        return several[0]
    return place


def _chosen(content: Manifest, strategy: str | None) -> dict[str, Any]:
    """Return the options to go on with: those that were saved, where the strategy is the same."""
    chosen: dict[str, Any] = {"accumulate": content.accumulate}
    if strategy is None or parse(strategy) == parse(content.strategy):
        chosen |= content.options
    return chosen


def _planned(
    content: Manifest, work: Workload, strategy: str | None, options: dict[str, Any]
) -> Plan:
    chosen = _chosen(content, strategy) | options
    return make_plan(work, strategy or content.strategy, **chosen)


def _check_model(content: Manifest, work: Workload) -> None:
    for kind, wanted in fitting.facts(work).arrays.items():
        prefix = f"{kind}:"
        there = {
            name.removeprefix(prefix): stored
            for name, stored in content.arrays.items()
            if name.startswith(prefix)
        }
        fitting.check_arrays(there, wanted, kind)


def _read(
    place: Path, content: Manifest, work: Workload, planned: Plan, lab: Lab, threads: int
) -> SavedRun:
    """Have all workers read, and return the run that they hold then."""
    hosts = lab.hosts_for(planned.ranks)
    needs = needed(content, planned)
    files = sorted(content.files)
    futures: list[Future] = []
    try:
        for rank, (host, wanted) in enumerate(zip(hosts, needs, strict=True)):
            first, last = balanced(len(files), planned.ranks, rank)
            task = lab.client.submit(
                read_shares,
                str(place),
                host.worker,
                {name: content.files[name] for name in files[first:last]},
                wanted,
                workers=[host.worker],
                allow_other_workers=False,
                retries=0,
                pure=False,
            )
            futures.append(task)
        finish(futures, [host.worker for host in hosts], lab, limit_s(content.size_bytes))
    except BaseException:
        lab.client.cancel(futures)
        raise
    kept: Kept = {}
    for rank, wanted in enumerate(needs):
        for each in wanted:
            kept.setdefault(each.name, {})[rank] = (each.shape, each.dtype)
    workers = tuple(host.worker for host in hosts)
    return SavedRun(place, work, planned, lab, threads, content.step, kept, futures, workers)


def needed(content: Manifest, planned: Plan) -> list[list[Wanted]]:
    """Return what each rank of a plan is to read: its shares, each once among all ranks."""
    found = []
    mesh = parse(content.strategy)
    draws = draws_on(mesh, planned.mesh) if mesh.size == len(content.files) else {}
    for rank in range(planned.ranks):
        wanted = []
        for name, stored in content.arrays.items():
            kind, _, rest = name.partition(":")
            if kind == "random":
                other, _, generator = rest.partition(":")
                if str(draws.get(rank)) == other:
                    own = f"random:{rank}:{generator}"
                    wanted.append(_wanted(own, name, stored, whole(stored.shape)))
            elif planned.holds(owner_of(name), rank) and is_first(
                planned, name, len(stored.shape), rank
            ):
                wanted.append(_wanted(name, name, stored, held(planned, name, stored.shape, rank)))
        found.append(wanted)
    return found


def _wanted(name: str, source: str, stored: Stored, piece: Piece) -> Wanted:
    sources = []
    for file, there in stored.parts.items():
        copies = common(there, piece)
        if copies is not None:
            sources.append((file, copies))
    shape = shape_of(piece)
    if sum(volume(copies) for _, copies in sources) != prod(shape):
        raise Damaged(f"The checkpoint is damaged: its parts are not the whole of {source!r}.")
    return Wanted(name, source, shape, stored.dtype, tuple(sources))
