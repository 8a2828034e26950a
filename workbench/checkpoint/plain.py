"""Weights alone, as others have them: one ``state_dict`` in a file, of safetensors or of torch."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from workbench.checkpoint import folder
from workbench.checkpoint.fitting import refuse_misfits
from workbench.checkpoint.manifest import Damaged
from workbench.checkpoint.parts import sync, write_plain
from workbench.checkpoint.pieces import Piece, held
from workbench.checkpoint.saved import Kept, SavedRun
from workbench.checkpoint.tasks import finish, limit_s
from workbench.errors import PlanError
from workbench.plan import is_first
from workbench.planning import plan as make_plan

if TYPE_CHECKING:
    from workbench.checkpoint.saving import Holder
    from workbench.cluster.lab import Lab
    from workbench.workload import Workload

SAFE, PICKLED = ".safetensors", (".pt", ".pth")
_WRAPPED = ("state_dict", "model_state_dict", "model")
"""Under what people put a state dict beside other things."""


def is_plain(path: Path) -> bool:
    """Return whether a path means weights alone."""
    return path.suffix in (SAFE, *PICKLED) and not path.is_dir()


def check_target(target: Path) -> None:
    """Raise PlanError if weights cannot be saved in a file of this name."""
    if target.suffix != SAFE:
        raise PlanError(
            f"Weights are saved as {SAFE}, which executes nothing when it is read; give "
            f"{target.with_suffix(SAFE).name!r}."
        )


def save(run: Holder, target: Path) -> Path:
    """Write the weights of a run to one file, on the worker of rank 0, which puts them together.

    Raises
    ------
    PlanError, RunError
        As :func:`workbench.checkpoint.saving.save`.
    """
    check_target(target)
    arrays = {
        f"{kind}:{name}": array
        for kind in ("parameter", "buffer")
        for name, array in run.state(kind).items()
    }
    names = _names(run.work.make_model())
    needed = sum(int(array.nbytes) for array in arrays.values())
    worker = run.ranks[0].worker
    client = run.lab.client
    token = secrets.token_hex(16)
    made = target.with_name(f".{target.name}.saving-{token[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(token)
    except OSError as error:
        raise folder.unwritable(target, error) from error
    futures: list[Any] = []
    try:
        pinned: dict[str, Any] = {"workers": [worker], "allow_other_workers": False}
        wholes = client.compute(list(arrays.values()), **pinned)
        futures += [
            client.submit(
                write_plain,
                str(made),
                token,
                worker,
                names,
                dict(zip(arrays, wholes, strict=True)),
                retries=0,
                pure=False,
                **pinned,
            )
        ]
        finish(futures, [worker], run.lab, limit_s(needed))
        os.replace(made, target)
        sync(str(target.parent))
    except OSError as error:
        raise folder.no_room(target, needed, error) from error
    except BaseException:
        client.cancel(futures)
        raise
    finally:
        with suppress(OSError):
            made.unlink()
    return target


def load(
    path: Path,
    strategy: str,
    work: Workload | None,
    lab: Lab,
    threads: int,
    options: Mapping[str, Any],
) -> SavedRun:
    """Return a run of ``work`` that has made no step and has the weights of a file.

    They are read here, cast to the precision of the workload, and sent to the workers in shares.

    Raises
    ------
    PlanError
        If the file is not there, is no state dict, holds code, or is of another model.
    """
    if work is None:
        raise PlanError(
            f"{path.name} holds weights alone; give the workload: wb.load(path, work=work)."
        )
    planned = make_plan(work, strategy, **options)
    arrays = _fitting(_read(path), work.make_model(), path)
    hosts = lab.hosts_for(planned.ranks)
    kept: Kept = {}
    shares = []
    for rank, host in enumerate(hosts):
        own = {}
        for name, array in arrays.items():
            if planned.holds(name.partition(":")[2], rank) and is_first(
                planned, name, array.ndim, rank
            ):
                own[name] = _cut(array, held(planned, name, array.shape, rank))
                kept.setdefault(name, {})[rank] = (own[name].shape, str(array.dtype))
        wait_s = limit_s(sum(a.nbytes for a in own.values()))
        shares += lab.client.scatter([own], workers=[host.worker], hash=False, timeout=wait_s)
    workers = [host.worker for host in hosts]
    return SavedRun(path, work, planned, lab, threads, 0, kept, shares, workers)


def _names(model: nn.Module) -> dict[str, str]:
    """Return the kept name of everything in a state dict; tied weights have several names there."""
    first: dict[int, str] = {}
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            first[id(tensor)] = f"{kind}:{name}"
    state = model.state_dict(keep_vars=True)
    return {name: first[id(value)] for name, value in state.items() if id(value) in first}


def _read(path: Path) -> dict[str, Tensor]:
    """Return a state dict; nothing in it is executed."""
    try:
        found: Any = (
            load_file(path)
            if path.suffix == SAFE
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise Damaged(f"There are no weights at {path}: nothing is there.") from None
    except pickle.UnpicklingError as error:
        raise PlanError(
            f"{path} holds more than arrays, and reading it could execute code, so it is not read; "
            "where you trust it, load it with torch, and give its state dict as a .safetensors "
            "file."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise Damaged(f"{path} cannot be read as weights: {reason}.") from error
    for key in _WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise PlanError(
            f"{path} holds no state dict, which maps names to tensors; save model.state_dict()."
        )
    return dict(found)


def _fitting(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a state dict by kept name, in the precision of the model."""
    names = _names(model)
    if state and all(name.startswith("module.") for name in state):  # as DDP leaves them
        state = {name.removeprefix("module."): value for name, value in state.items()}
    tensors = {
        **{f"parameter:{name}": value for name, value in model.named_parameters()},
        **{f"buffer:{name}": value for name, value in model.named_buffers()},
    }
    found: dict[str, NDArray[Any]] = {}
    problems = []
    for name, kept in names.items():
        if name not in state:
            continue
        wanted, given = tensors[kept], state[name]
        if given.shape != wanted.shape:
            problems.append(
                f"{name!r} has the shape {tuple(given.shape)} in it and {tuple(wanted.shape)} in "
                "the model"
            )
        elif kept not in found:
            found[kept] = given.to(wanted.dtype).contiguous().numpy()
    missing = {kept: name for name, kept in reversed(names.items()) if kept not in found}
    problems += [f"{name!r} is not in it" for name in missing.values() if name not in state]
    problems += [f"{name!r} is not in the model" for name in state if name not in names]
    refuse_misfits(problems, f"{path.name} is of another model")
    return found


def _cut(array: NDArray[Any], piece: Piece) -> NDArray[Any]:
    for dim, runs in enumerate(piece):
        index = np.concatenate([np.arange(*run) for run in runs])
        if len(runs) > 1 or len(index) != array.shape[dim]:
            array = array.take(index, axis=dim)
    return np.ascontiguousarray(array).reshape(array.shape)
