"""Time every lesson as it is, not in fast mode; run by hand.

    python tests/benchmarks/lessons.py [03 04]

Each notebook is run from top to bottom in a kernel of its own, without a browser, its checks
unanswered. Prints the seconds that its cells took, and its slowest cell. A lesson is to take two
minutes at most on two cores. Close everything else that uses the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from workbench.machine import describe

ROOT = Path(__file__).parents[2]
MOST_S = 120.0


def cells_s(path: Path) -> dict[str, float]:
    """Run a notebook, and return what each of its cells took, by name."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=1200,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            store_widget_state=False,
        ).execute()
    return {cell.id: _took_s(cell) for cell in notebook.cells if cell.cell_type == "code"}


def _took_s(cell: nbformat.NotebookNode) -> float:
    times = cell.metadata.execution
    begun, ended = (
        datetime.fromisoformat(times[name]) for name in ("iopub.status.busy", "shell.execute_reply")
    )
    return (ended - begun).total_seconds()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("lessons", nargs="*", help="numbers, such as 04; all if left out")
    asked = options.parse_args().lessons
    os.environ.pop("WORKBENCH_FAST", None)
    os.environ["PYTHONPATH"] = str(ROOT)
    print(describe())
    print(f"{'lesson':<28} {'s':>6}  slowest cell")
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        if asked and path.name[:2] not in asked:
            continue
        took = cells_s(path)
        total_s, slowest = sum(took.values()), max(took, key=lambda name: took[name])
        late = "" if total_s <= MOST_S else f"  more than {MOST_S:.0f} s"
        print(
            f"{path.stem:<28} {total_s:>6.1f}  {slowest}: {took[slowest]:.1f} s{late}", flush=True
        )


if __name__ == "__main__":
    main()
