"""Who may import whom, read from the source of every file, imports inside functions included.

The three tables below are the rule; docs/design.md says why. Change them on purpose or not at all.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "workbench"

# From the ground up: a room may import the rooms listed before it, never one listed after it.
ROOMS = (
    "errors",  # PlanError and RunError
    "arguments",  # numbers that a user asks for, checked
    "mesh",  # the balanced split
    "windows",  # which input rows an output row needs, and whose they are
    "traced",  # what a pass of a model has shown
    "schedules",  # who does what when, of a pipeline
    "plan",  # shares, collectives, bytes
    "strategies",  # one file per axis
    "hashing",  # which worker has which key
    "distribution",  # a table of chunks by worker
    "order",  # which samples make which batch
    "preview",  # ranks' shares of a picture, put together
    "spans",  # timed pieces of a step
    "measured",  # the record of a run, live or read back
    "accuracy",  # how many targets of a batch were right, over ranks
    "bubble",  # how much the ranks of a pipeline wait
    "speedup",  # from timed runs to a table
    "amdahl",  # the serial fraction of a strategy
    "cost",  # seconds of cores, and money
    "compared",  # the record of a comparison, live or read back
    "timeline",  # what every rank did when
    "why",  # each millisecond beyond the ideal step
    "findings",  # what a comparison found, in sentences
    "documents",  # what is read back of a comparison, field by field
    "records",  # the folder of a run
    "machine",  # cores, GPUs, memory, versions
    "pickling",  # a user's own code as bytes
    "sources",  # rows in files of every kind
    "generators",  # what a user's own code draws from
    "nested",  # tensors in tuples, lists, dicts and dataclasses
    "losses",  # what a loss says of itself
    "divisors",  # what a loss divides by, found from outside
    "trials",  # how a loss sums over samples, tried
    "models",  # plain models
    "optimizers",  # what an optimizer does to a share of a parameter
    "given",  # what a model is given, in order or by name
    "recipe",  # model, loss and optimizer, without the data
    "datasets",  # real data as dask arrays
    "catalogue",  # the workloads that come along
    "workload",  # model, data, loss, optimizer, batch size, seed
    "inputs",  # refusals of a bad workload
    "comm",  # collectives between ranks
    "layers",  # parallel layers
    "tracking",  # labels of dims, followed through a model's code
    "profile",  # model -> layers
    "mixing",  # code that mixes samples, which replicas cannot
    "layer_times",  # how long each layer takes here
    "limits",  # what a rank may keep
    "nearest",  # what works instead of a pipeline
    "split_at",  # stages that begin where the user says
    "dividing",  # a model -> the stages of a pipeline
    "sequencing",  # a model -> where ranks go on with some positions
    "arranging",  # a plan's first lines -> its stages and positions
    "composing",  # a profile and the axes of a mesh -> plan
    "planning",  # workload and strategy -> plan
    "controls",  # what an experiment is, in plain values
    "sharing",  # share codes
    "cluster",  # Dask cluster, rank hosts, ranks
    "scoring",  # loss and accuracy over ranks
    "judging",  # how many targets of its batch a rank got right
    "previewing",  # a rank's share of the picture that is shown
    "telling",  # what the dashboard is told of runs
    "keeping",  # a rank's shares of parameters and buffers
    "loading",  # a rank's samples, ahead of the step
    "pacing",  # whether ranks go on, wait or end
    "updating",  # from a rank's gradients to new weights
    "peak_memory",  # what a rank took at most
    "passes",  # forward and backward of the micro-batches of a step
    "snapshots",  # what a rank leaves for a checkpoint while it goes on
    "engine",  # the step loop of a rank
    "verify",  # equality with serial, in this process
    "resuming",  # where a run begins that goes on from another
    "placement",  # each rank's data onto the rank's worker
    "storing",  # arrays on the workers that a scheme names
    "execution",  # a plan carried out by a gang of ranks
    "steering",  # how others steer a run that goes on
    "checkpoint",  # runs on disk
    "run",  # one execution of a plan
    "state",  # what two runs have come to, compared
    "arrays",  # graph mode: operators and models on dask arrays
    "apply",  # a model on a dask array
    "predict",  # a trained model's outputs
    "evaluate",  # a trained model on other data
    "comparison",  # repeats, baselines, speedups, proofs
    "compare",  # the start of one
    "sweep",  # the start of one of all that can be done
    "attached_run",  # a run as its folder tells it, followed
    "attaching",  # runs and comparisons as their folders tell them
    "gathered",  # several of them, side by side
    "ui",  # panel, figures, report
    "dashboard",  # pages in the Dask dashboard
    "cli",  # the command `workbench`
    "__init__",  # the door, which nobody imports
)

# What a pure room may not import: it answers in milliseconds, anywhere, for any number of ranks.
PURE = (
    "errors",
    "arguments",
    "mesh",
    "windows",
    "traced",
    "plan",
    "strategies",
    "spans",
    "measured",
    "accuracy",
    "bubble",
    "given",
    "speedup",
    "amdahl",
    "cost",
    "compared",
    "why",
    "findings",
    "timeline",
    "documents",
)
HEAVY = ("torch", "numpy", "dask", "distributed", "bokeh", "ipywidgets", "jupyter_bokeh", "IPython")

# Where each package lives: in a room, or in single files of a room.
TORCH = (
    *("comm", "losses", "nested", "divisors", "trials", "models", "optimizers"),
    *("recipe", "workload", "catalogue", "inputs"),
    *(
        "tracking",
        "profile",
        "mixing",
        "dividing",
        "layer_times",
        "sequencing",
        "arranging",
        "composing",
        "planning",
        "layers",
        "scoring",
        "judging",
        "loading",
        "previewing",
        "passes",
        "peak_memory",
        "pacing",
        "updating",
        "engine",
        "verify",
        "keeping",
        "arrays",
        "apply",
        "predict",
        "evaluate",
        "generators",
    ),
    *("cluster/rank.py", "cluster/context.py", "cluster/forkserver.py"),
    *("checkpoint/plain.py", "checkpoint/fitting.py"),
)
DASK = (
    *("datasets", "workload", "cluster"),
    *(
        "placement",
        "execution",
        "run",
        "state",
        "resuming",
        "arrays",
        "apply",
        "predict",
        "checkpoint",
        "storing",
        "dashboard",
    ),  # the client's side, or the scheduler's: a rank imports none of these
)
HOMES = {
    "torch": TORCH,
    "dask": DASK,
    "distributed": DASK,
    "bokeh": ("ui", "dashboard"),
    "ipywidgets": ("ui",),
    "jupyter_bokeh": ("ui",),
    "IPython": ("ui",),
    "click": ("cli",),
    "safetensors": ("checkpoint",),
}


class Import(NamedTuple):
    """One import: its file, relative to the package, its line, and the dotted name it asks for."""

    file: Path
    line: int
    name: str

    @property
    def room(self) -> str:
        return Path(self.file.parts[0]).stem


def rooms(package: Path) -> set[str]:
    """Return the files and folders of Python directly in ``package``."""
    return {Path(path.relative_to(package).parts[0]).stem for path in package.rglob("*.py")}


def imports(package: Path) -> Iterator[Import]:
    """Yield every import of every file; ``from a import b`` counts as ``a.b``."""
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parent = "." * node.level + (node.module or "")
                names = [f"{parent}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from (Import(file, node.lineno, name) for name in names)


def lives_in(file: Path, homes: tuple[str, ...]) -> bool:
    return Path(file.parts[0]).stem in homes or file.as_posix() in homes


def violation(found: Import, existing: set[str]) -> str | None:
    """Return what is wrong with one import, as a sentence, or None."""
    top, *rest = found.name.split(".")
    where, room = found.file.as_posix(), found.room
    if not top:
        return f"{where}: write `from workbench... import`, not a relative import"
    if top == "workbench":
        if rest == ["__version__"]:
            return None
        target = rest[0] if rest and rest[0] in existing else "__init__"
        if target != room and ROOMS.index(target) > ROOMS.index(room):
            name = "the door" if target == "__init__" else target
            return f"{where}: {room} may not import {name} (arrows point down: {room} is below it)"
        return None
    if room in PURE and top in HEAVY:
        return f"{where}: {room} is a pure room and may not import {top}"
    if top in HOMES and not lives_in(found.file, HOMES[top]):
        return f"{where}: only {', '.join(HOMES[top])} may import {top}"
    return None


def violations(package: Path) -> list[str]:
    """Return every broken rule of a package, each with its file and line."""
    existing = rooms(package)
    homeless = existing - set(ROOMS)
    if homeless:
        return [f"{room} has no place in ROOMS of {Path(__file__).name}" for room in homeless]
    found = ((i, violation(i, existing)) for i in imports(package))
    return [f"{sentence} [line {i.line}]" for i, sentence in found if sentence]


def test_arrows_point_down():
    assert violations(PACKAGE) == []


def test_every_listed_room_exists():
    assert set(ROOMS) == rooms(PACKAGE)


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("plan.py", "import workbench.ui.panel", "plan.py: plan may not import ui (arrows"),
        ("plan.py", "from workbench import ui", "plan.py: plan may not import ui (arrows point"),
        ("comm/tcp.py", "def f():\n    import workbench.run", "comm/tcp.py: comm may not"),
        ("engine.py", "import workbench as wb", "engine.py: engine may not import the door"),
        ("cli.py", "from workbench import start", "cli.py: cli may not import the door"),
        ("mesh.py", "import numpy as np", "mesh.py: mesh is a pure room and may not import numpy"),
        ("strategies/data.py", "from torch import nn", "strategies/data.py: strategies is a pure"),
        ("machine.py", "import torch", "machine.py: only comm, losses"),
        ("run.py", "from bokeh.plotting import figure", "run.py: only ui, dashboard may"),
        ("cluster/lab.py", "import torch.nn", "cluster/lab.py: only comm, losses"),
        ("run.py", "from . import plan", "run.py: write `from workbench... import`"),
        ("helpers.py", "", "helpers has no place in ROOMS"),
    ],
)
def test_a_wrong_arrow_is_named(tmp_path, file, code, complaint):
    for name in (
        *("__init__.py", "plan.py", "mesh.py", "run.py", "engine.py"),
        *("comm/__init__.py", "ui/__init__.py", "ui/panel.py", "strategies/__init__.py"),
        *("cluster/__init__.py", "cluster/rank.py"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cli.py").write_text("import click\nfrom workbench import __version__\n")
    (tmp_path / "cluster/rank.py").write_text("import torch\nimport distributed\n")
    (tmp_path / "run.py").write_text("import dask\nfrom workbench.plan import Plan\n")
    assert violations(tmp_path) == []
    (tmp_path / file).write_text(code)
    [sentence] = violations(tmp_path)
    assert sentence.startswith(complaint)


@pytest.mark.parametrize(
    "name", ["workbench", "workbench.strategies.notation", "workbench.speedup"]
)
def test_light_imports_load_nothing_heavy(name):
    """A Dask worker runs the door whenever it unpickles one of our functions."""
    code = f"import sys, {name}; print(*{{module.partition('.')[0] for module in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    unwanted = {*HEAVY, "jupyter_core", "jupyterlab", "cryptography", "rich", "click", "sklearn"}
    assert unwanted.isdisjoint(loaded)


def test_no_file_is_a_drawer():
    """A thing that fits nowhere is a concept without a name; a file of 400 lines holds two."""
    files = list(PACKAGE.rglob("*.py"))
    assert {"utils", "common", "base", "core", "helpers"}.isdisjoint(path.stem for path in files)
    assert [str(path) for path in files if len(path.read_text().splitlines()) >= 400] == []
