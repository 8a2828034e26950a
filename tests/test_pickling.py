"""What ranks are sent: models of cells, files and functions, and what cannot travel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Lock

import pytest
import torch
from torch import nn
from workloads import make, net

from workbench.errors import PlanError
from workbench.recipe import load_payload
from workbench.workload import workload

pytestmark = pytest.mark.usefixtures("in_this_thread")

# ---------------------------------------------------------------------------- to the ranks


class Mine(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 2))


MODULE = """
from torch import nn
WIDTH = 2
def helper():
    return WIDTH
class FromAFile(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, helper())
    def forward(self, x):
        return self.layer(x)
"""
SCRIPT = """
import sys
from torch import nn
import numpy as np
from workbench.workload import Workload
class InACell(nn.Linear):
    pass
work = Workload(model=InACell(3, 2), data=(np.ones((4, 3)), np.zeros(4, int)), batch_size=2)
open(sys.argv[1], "wb").write(work.payload())
"""
LOADER = """
import sys, torch
from workbench.recipe import load_payload
for path in sys.argv[1:]:
    recipe = load_payload(open(path, "rb").read())
    model = recipe.make_model()
    output = model(torch.ones((2, *recipe.sample_shapes[0])))
    recipe.loss(output, torch.zeros(2, dtype=torch.int64)).backward()
    recipe.make_optimizer(model.named_parameters()).step()
    print(type(model).__name__)
"""


@pytest.mark.timeout(60)
def test_models_of_notebook_cells_files_and_functions_reach_a_process_without_them(
    tmp_path, monkeypatch
):
    (tmp_path / "my_own_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import my_own_model  # type: ignore[import-not-found]

    class InAFunction(nn.Linear):
        pass

    payloads = {
        "file": make(model=my_own_model.FromAFile()).payload(),
        "factory": make(model=my_own_model.FromAFile).payload(),
        "function": make(model=lambda: InAFunction(3, 2)).payload(),
        "test module": make(model=Mine()).payload(),
    }
    paths = []
    for name, payload in payloads.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(payload)
    paths.append(tmp_path / "cell")
    subprocess.run([sys.executable, "-c", SCRIPT, paths[-1]], check=True, timeout=50)
    elsewhere = subprocess.run(
        [sys.executable, "-c", LOADER, *paths],
        check=True,
        timeout=50,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert elsewhere.stdout.split() == ["FromAFile", "FromAFile", "InAFunction", "Mine", "InACell"]
    del sys.modules["my_own_model"]


def test_installed_code_is_not_sent_along():
    assert len(workload("digits-cnn").payload()) < 2_000
    assert len(make(model=net()).payload()) < 10_000


def test_what_cannot_be_sent_is_named():
    lock = Lock()

    def factory():
        return lock and net()

    with pytest.raises(PlanError, match=r"'lock', used in the model, cannot be sent.*pickle"):
        make(model=factory).payload()
    with pytest.raises(PlanError, match="'lock', used in the loss, cannot be sent"):
        make(loss=lambda output, target: lock and output.sum()).payload()


def test_a_recipe_is_the_same_on_the_other_side():
    work = make(model=net(), optimizer=torch.optim.Adam, loss=nn.CrossEntropyLoss(), seed=4)
    recipe = load_payload(work.payload())
    assert recipe.sample_shapes == ((3,),)
    assert recipe.target_shape == ()
    assert (recipe.seed, recipe.batch_size, recipe.input_dtypes) == (4, 4, ("float32",))
    for a, b in zip(recipe.make_model().parameters(), work.make_model().parameters(), strict=True):
        assert torch.equal(a, b)
