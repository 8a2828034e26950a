"""Objects of a user's own code as bytes that a process without that code can load."""

from __future__ import annotations

import inspect
import pickle
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import cloudpickle

from workbench.errors import PlanError

_registering = Lock()


def dump(parts: Mapping[str, Any]) -> bytes:
    """Return ``parts`` as bytes for :func:`load`.

    Code that is not installed, such as a notebook's cells or a file beside the notebook, travels in
    the bytes; installed code is imported where they are loaded.

    Raises
    ------
    PlanError
        if something cannot be pickled, naming it.
    """
    with _own_modules_by_value():
        try:
            return cloudpickle.dumps(dict(parts))
        except Exception as error:
            titled = {f"the {name}": part for name, part in parts.items()}
            where, reason = culprit(titled, cloudpickle.dumps) or ("the workload", error)
            raise PlanError(
                f"{where[0].upper()}{where[1:]} cannot be sent to the ranks ({reason}); make it "
                f"where it is used, or leave it out."
            ) from error


def load(data: bytes) -> dict[str, Any]:
    """Return what :func:`dump` was given; runs code, so only for bytes of this user's cluster."""
    parts: dict[str, Any] = pickle.loads(data)
    return parts


def culprit(
    parts: Mapping[str, Any], attempt: Callable[[Any], Any], outer: tuple[int, ...] = ()
) -> tuple[str, Exception] | None:
    """Return the name of the innermost thing in ``parts`` on which ``attempt`` fails, and why.

    ``outer`` are the ids of the things around ``parts``, which may refer to themselves.
    """
    for name, part in parts.items():
        error = None if id(part) in outer else _failure(part, attempt)
        if error:
            return culprit(_inside(name, part), attempt, (*outer, id(part))) or (name, error)
    return None


def _failure(part: Any, attempt: Callable[[Any], Any]) -> Exception | None:
    try:
        attempt(part)
    except Exception as error:
        return error
    return None


def _inside(name: str, part: Any) -> dict[str, Any]:
    """Return what ``part`` is made of, each under a name for the user."""
    if isinstance(part, Mapping):
        return {f"{name}[{key!r}]": value for key, value in part.items()}
    if inspect.isfunction(part):
        used = inspect.getclosurevars(part)
        return {
            f"{key!r}, used in {name},": value
            for key, value in {**used.globals, **used.nonlocals}.items()
        }
    layers = getattr(part, "_modules", None)
    if isinstance(layers, dict):
        own = {key: value for key, value in vars(part).items() if not key.startswith("_")}
        return {f"{name}.{key}": value for key, value in {**layers, **own}.items()}
    return {}


@contextmanager
def _own_modules_by_value() -> Iterator[None]:
    """Let cloudpickle take the code of modules that are not installed along, while this lasts."""
    with _registering:
        already = cloudpickle.list_registry_pickle_by_value()
        own = {
            module
            for module in list(sys.modules.values())
            if not _installed(module) and module.__name__ not in already
        }
        try:
            for module in own:
                cloudpickle.register_pickle_by_value(module)
            yield
        finally:
            for module in own:
                cloudpickle.unregister_pickle_by_value(module)


def _installed(module: ModuleType) -> bool:
    """Whether workers can be expected to import ``module`` themselves."""
    name: str = getattr(module, "__name__", "")
    file: str | None = getattr(module, "__file__", None)
    if not file or name == "__main__" or sys.modules.get(name) is not module:
        return True  # cloudpickle itself takes the code of __main__ along
    path = Path(file).absolute()
    return any(path.is_relative_to(folder) for folder in _INSTALLED) or not {
        "site-packages",
        "dist-packages",
    }.isdisjoint(path.parts)


_INSTALLED = {
    Path(str(folder)).absolute()
    for folder in (
        *(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        Path(__file__).parent,
    )
}
