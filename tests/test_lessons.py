"""The lessons: whole, clean, and run to the end with the answers that they themselves give."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
TRANSLATED = sorted(NOTEBOOKS.glob("zh/*.ipynb"))
ALL = [*LESSONS, *TRANSLATED, NOTEBOOKS / "panel.ipynb"]
HEADINGS = ("Goals", "Predict", "Run", "Explain", "Change", "Check yourself", "Read more")


def name_of(path: Path) -> str:
    return path.relative_to(NOTEBOOKS).as_posix().removesuffix(".ipynb")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(notebook: nbformat.NotebookNode) -> dict[str, str]:
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def solution(cell: nbformat.NotebookNode) -> str:
    [code] = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    return code


def solved(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook with each check once more, after the solution that it has folded away."""
    own = code_of(notebook)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.id.startswith("solution-"):
            number = cell.id.removeprefix("solution-")
            cells.append(nbformat.v4.new_code_cell(solution(cell)))
            cells.append(nbformat.v4.new_code_cell(own[f"check-{number}"], id=f"solved-{number}"))
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def test_there_is_a_lesson_of_every_number():
    assert [path.name[:3] for path in LESSONS] == [f"{n:02}-" for n in range(len(LESSONS))]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_it_is_committed_without_outputs(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id
        assert len(cell.id) < 20, "ids are names: they are looked at in a diff"


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_it_has_all_its_parts(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [heading for heading in HEADINGS if heading not in found] == []
    assert re.search(r"^# \d\d ", text, re.MULTILINE)[0][2:4] == path.name[:2]
    assert re.search(r"About \d+ minutes", text)
    checks = {cell.id for cell in notebook.cells if cell.id.startswith("check-")}
    assert checks
    for check in checks:  # a check that stops Run All would keep the cluster from being closed
        [cell] = [cell for cell in notebook.cells if cell.id == check]
        assert "raises-exception" in cell.metadata.tags
    solutions = {cell.id for cell in notebook.cells if cell.id.startswith("solution-")}
    assert {s.replace("solution", "check") for s in solutions} == checks


def test_each_lesson_has_a_translation():
    assert [path.name for path in TRANSLATED] == [path.name for path in LESSONS]


@pytest.mark.parametrize("path", TRANSLATED, ids=name_of)
def test_a_translation_has_the_same_code(path):
    original = read(NOTEBOOKS / path.name)
    notebook = read(path)
    assert code_of(notebook) == code_of(original)
    assert [(c.id, c.cell_type) for c in notebook.cells] == [
        (c.id, c.cell_type) for c in original.cells
    ]
    for one, other in zip(notebook.cells, original.cells, strict=True):
        if one.id.startswith("solution-"):
            assert solution(one) == solution(other)


def test_those_who_teach_are_told_as_much_in_chinese():
    """Heading by heading, item by item, and row by row."""

    def shape(path):
        lines = path.read_text("utf-8").splitlines()
        begun = (re.match(r"#+ |\d\.|-|\|", line) for line in lines)
        return [each[0] for each in begun if each]

    original = shape(NOTEBOOKS / "INSTRUCTOR.md")
    assert len(original) > 60
    assert shape(NOTEBOOKS / "zh" / "INSTRUCTOR.md") == original


@pytest.mark.timeout(240)
@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_it_runs_and_its_checks_fail_until_they_are_answered(path, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = solved(read(path))
    NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
        store_widget_state=False,
    ).execute()
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        said = "".join(o.text for o in outputs if o.get("name") == "stdout")
        errors = [o.ename for o in outputs if o.output_type == "error"]
        assert errors == (["AssertionError"] if cell.id.startswith("check-") else []), cell.id
        assert not [o.text for o in outputs if o.get("name") == "stderr"], cell.id
        if cell.id.startswith("solved-"):
            assert said.endswith("Right.\n"), cell.id
