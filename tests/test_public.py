"""The door: every public name is there, lazy, and never replaced by a room of the same name."""

from __future__ import annotations

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import workbench as wb

DOOR = ast.parse((Path(__file__).parents[1] / "workbench" / "__init__.py").read_text())
FUNCTIONS = (
    *("app", "apply", "compare", "compare_schemes", "dataset", "evaluate", "load", "placement"),
    *("plan", "predict", "register_strategy", "run", "save", "start", "store", "verify", "where"),
    "workload",
)
SAME_NAME_AS_ROOM = (
    *("apply", "compare", "evaluate", "placement", "plan", "predict", "run", "verify"),
    "workload",
)


def python(code: str) -> str:
    """Run code in a fresh interpreter, where no room has been imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_a_sorted_literal():
    [literal] = [
        ast.literal_eval(node.value)
        for node in DOOR.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert literal == wb.__all__ == sorted(set(literal))


@pytest.mark.parametrize("name", wb.__all__)
def test_every_name_is_there(name):
    assert getattr(wb, name) is not None
    assert name in dir(wb)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented_functions(name):
    function = getattr(wb, name)
    assert isinstance(function, FunctionType)
    assert function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function


def test_editors_see_what_the_door_gives():
    [block] = [node for node in DOOR.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    given = {**wb._ROOM_OF, **dict.fromkeys(wb._ROOMS, "workbench")}
    assert seen == given
    assert {*given, "PlanError", "RunError", "__version__"} == set(wb.__all__)


@pytest.mark.parametrize("name", SAME_NAME_AS_ROOM)
def test_a_room_never_hides_the_function_of_its_name(name):
    room = importlib.import_module(f"workbench.{name}")
    assert isinstance(room, ModuleType)
    assert isinstance(getattr(wb, name), FunctionType)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "first",
    [
        "import workbench.run, workbench.workload, workbench.plan",
        "from workbench.run import Run",
        "wb.run, wb.workload, wb.plan",
        "from workbench import run, workload, plan",
    ],
)
def test_either_order_gives_functions(first):
    code = f"""
import workbench as wb
{first}
import workbench.run, workbench.workload, workbench.plan
from workbench.run import Run
from workbench.plan import Plan
from workbench import run, workload, plan
print(*(type(f).__name__ for f in (wb.run, wb.workload, wb.plan, run, workload, plan)))
print(*(type(c).__name__ for c in (Run, Plan, wb.Workload)))
"""
    assert python(code).split() == ["function"] * 6 + ["type"] * 3


def test_datasets_is_a_module():
    assert wb.datasets is importlib.import_module("workbench.datasets")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'spede'"):
        _ = wb.spede


def test_import_star_gives_the_public_names():
    names = python("from workbench import *; print(*(n for n in dir() if n[:2] != '__'))")
    assert set(names.split()) == set(wb.__all__) - {"__version__"}


def test_errors_are_what_python_users_catch():
    assert issubclass(wb.PlanError, ValueError)
    assert issubclass(wb.RunError, RuntimeError)
