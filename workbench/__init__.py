"""Dask parallel workbench: try, compare and prove ways to run one model in parallel.

Every public name stands in ``__all__``; README.md shows them at work. The door is lazy: a name is
loaded when it is first asked for, so ``import workbench`` costs nothing, and a Dask worker that
unpickles one of our functions loads neither the panel nor torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.errors import PlanError, RunError

if TYPE_CHECKING:  # what type checkers and editors see; tests hold it equal to the table below
    from workbench import arrays, datasets
    from workbench.apply import apply
    from workbench.attaching import attach
    from workbench.checkpoint.loading import load
    from workbench.checkpoint.saving import save
    from workbench.cluster.starting import start
    from workbench.compare import compare
    from workbench.datasets.opening import dataset
    from workbench.distribution import compare_schemes, placement
    from workbench.evaluate import evaluate
    from workbench.planning import plan
    from workbench.predict import predict
    from workbench.run import run
    from workbench.storing import store
    from workbench.strategies import Strategy, register_strategy
    from workbench.sweep import sweep
    from workbench.timeline import write_trace
    from workbench.ui.exporting import export
    from workbench.ui.layer_picture import picture
    from workbench.ui.panel import app
    from workbench.ui.placement_page import where
    from workbench.verify import verify
    from workbench.workload import Workload, workload

__version__ = "0.1.0"

__all__ = [
    "PlanError",
    "RunError",
    "Strategy",
    "Workload",
    "__version__",
    "app",
    "apply",
    "arrays",
    "attach",
    "compare",
    "compare_schemes",
    "dataset",
    "datasets",
    "evaluate",
    "export",
    "load",
    "picture",
    "placement",
    "plan",
    "predict",
    "register_strategy",
    "run",
    "save",
    "start",
    "store",
    "sweep",
    "verify",
    "where",
    "workload",
    "write_trace",
]

_ROOM_OF = {
    "Strategy": "workbench.strategies",
    "Workload": "workbench.workload",
    "app": "workbench.ui.panel",
    "apply": "workbench.apply",
    "attach": "workbench.attaching",
    "compare": "workbench.compare",
    "compare_schemes": "workbench.distribution",
    "dataset": "workbench.datasets.opening",
    "evaluate": "workbench.evaluate",
    "export": "workbench.ui.exporting",
    "load": "workbench.checkpoint.loading",
    "picture": "workbench.ui.layer_picture",
    "placement": "workbench.distribution",
    "plan": "workbench.planning",
    "predict": "workbench.predict",
    "register_strategy": "workbench.strategies",
    "run": "workbench.run",
    "save": "workbench.checkpoint.saving",
    "start": "workbench.cluster.starting",
    "store": "workbench.storing",
    "sweep": "workbench.sweep",
    "verify": "workbench.verify",
    "where": "workbench.ui.placement_page",
    "workload": "workbench.workload",
    "write_trace": "workbench.timeline",
}
"""The module that defines each lazy name."""

_ROOMS = frozenset({"arrays", "datasets"})
"""Public names that are modules themselves."""


class _Door(ModuleType):
    """The package as an object: its public names are lazy, and win over rooms of the same name.

    The import system sets ``workbench.run`` to the module ``workbench/run.py`` as soon as anybody
    imports that module. Here the function stays: ``wb.run`` is always the function, and what else
    is in the module is had with ``from workbench.run import Run``. (``import workbench.run as r``
    reads the attribute, and so gives the function too.)
    """

    def __getattr__(self, name: str) -> object:
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        if name not in _ROOM_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_ROOM_OF[name]), name)
        self.__dict__[name] = value  # found once: the next look-up does not come here
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _ROOM_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Door


_SHOWN = (("workbench.measured", "Measured"), ("workbench.compared", "Compared"))
"""What a notebook shows as a table: runs and comparisons, going on or read from their folders."""


def _show_results(shell: Any) -> None:
    """Have an IPython shell show results; ``ui`` is loaded by the first of them.

    The rooms that results come from know of no screen, so it is not a method of theirs.
    """

    def shown(result: Any) -> str:
        return str(import_module("workbench.ui.result_page").result_html(result))

    for module, name in _SHOWN if shell is not None else ():
        shell.display_formatter.formatters["text/html"].for_type_by_name(module, name, shown)


_show_results(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)())
