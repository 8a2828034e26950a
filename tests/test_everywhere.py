"""The workbench from a notebook, from a plain script, from ``python -c``, twice in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.timeout(120)

TRAIN = """
import numpy as np, torch
import workbench as wb

class Net(torch.nn.Module):
    "Defined here, so that ranks can only have it by value."
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.layer(x)

def train():
    source = np.random.default_rng(0)
    data = source.normal(size=(40, 4)).astype("f4"), source.integers(0, 3, 40)
    work = wb.Workload(model=Net, data=data, batch_size=8)
    run = wb.run(work, "data=2", steps=4, folder="runs").wait(60)
    return run.status, len(run.history), len(run.ranks)
"""

ONCE = """
with wb.start(workers=2, threads=1):
    print(*train())
"""


def python(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_from_a_script_without_a_main_guard_twice_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TRAIN + ONCE + ONCE)
    done = python(tmp_path, "script.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done 4 2\n" * 2, "")


def test_from_the_command_line(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", TRAIN + ONCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done 4 2\n", "")


def executed(tmp_path: Path, *cells: str) -> list[nbformat.NotebookNode]:
    """Return the outputs of the cells of a notebook that runs without a browser."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(
        notebook,
        timeout=100,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
        store_widget_state=False,
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    return outputs


def test_a_model_from_a_notebook_cell(tmp_path: Path) -> None:
    cells = (TRAIN, "lab = wb.start(workers=2, threads=1)", "print(*train())", "lab.close()")
    outputs = executed(tmp_path, *cells)
    assert "".join(o.text for o in outputs if o.get("name") == "stdout").strip() == "done 4 2"


def test_the_panel_of_a_notebook_is_a_sentence_where_there_are_no_widgets(tmp_path: Path) -> None:
    """As the web shows a notebook that was saved, and front ends that know no widgets."""
    shown = "panel = wb.app(workers=1, workload='digits-mlp')\npanel"
    outputs = executed(tmp_path, "import workbench as wb", shown, "panel.close()")
    [panel] = [o.data for o in outputs if "application/vnd.jupyter.widget-view+json" in o.data]
    assert "The live panel cannot be shown here" in panel["text/html"]
    assert "Parallel workbench panel" in panel["text/plain"]
