"""The project's own files agree with each other and with what is installed."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import workbench as wb

ROOT = Path(__file__).parents[1]
PYPROJECT_TEXT = (ROOT / "pyproject.toml").read_text()
PYPROJECT = tomllib.loads(PYPROJECT_TEXT)
CORE = PYPROJECT["project"]["dependencies"]
TEST = PYPROJECT["project"]["optional-dependencies"]["test"]
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PICTURES = sorted((ROOT / "docs").glob("*.svg"))

# What conda-forge calls a package, where it is not the name that pip knows.
CONDA_NAMES = {
    "torch": "pytorch",
    "dask[distributed]": "dask",  # conda-forge's dask brings distributed with it
    "playwright": "playwright-python",
}


def split(requirement: str) -> tuple[str, str]:
    """Return name and version range: ``("torch", ">=2.9,<2.14")``."""
    name, bounds = re.fullmatch(r"([\w.\[\]-]+)\s*(.*)", requirement).groups()
    return name, bounds


def test_conda_installs_what_pip_installs():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(split(line) for line in listed if isinstance(line, str))
    assert conda.pop("python") == PYPROJECT["project"]["requires-python"]
    del conda["pip"]
    pip = {CONDA_NAMES.get(name, name): bounds for name, bounds in map(split, [*CORE, *TEST])}
    *elsewhere, ours = listed[-1]["pip"]  # what conda-forge does not have
    assert conda | dict(map(split, elsewhere)) == pip
    assert ours == "-e ."


@pytest.mark.parametrize("requirement", CORE)
def test_every_dependency_has_its_reason(requirement):
    assert re.search(rf'^ *"{re.escape(requirement)}", +# \w.{{9,}}', PYPROJECT_TEXT, re.MULTILINE)


def test_every_ignored_rule_and_warning_has_its_reason():
    lint = PYPROJECT["tool"]["ruff"]["lint"]
    per_file = [f'"{pattern}" = ' for pattern in lint["per-file-ignores"]]
    warnings = [f"'{w}'," for w in PYPROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"][1:]]
    for entry in [*(f'"{rule}",' for rule in lint["ignore"]), *per_file, *warnings]:
        reason = rf"^ *{re.escape(entry)}.*# \w.{{9,}}"
        assert re.search(reason, PYPROJECT_TEXT, re.MULTILINE), entry


def test_one_version_everywhere():
    assert metadata.version("dask-workbench") == wb.__version__
    assert f"## [{wb.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_only_the_package_is_installed():
    """Nothing of the tests, the docs or the build lands in site-packages."""
    ours = r"workbench/|dask_workbench-[^/]*\.dist-info/|\.\./.*/bin/workbench$|_editable_.*\.pth$"
    ours += r"|\.\./.*/share/jupyter/lab/settings/overrides\.d/dask-workbench\.json$"
    files = [str(path) for path in metadata.files("dask-workbench")]
    assert [name for name in files if not re.match(ours, name)] == []


def test_readme_names_the_commands():
    for command in (
        "pip install . && workbench demo",
        "pip install '.[test]' && pytest",
        "workbench lab",
    ):
        assert command in README
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install --quiet '.[test]'" in ci
    assert ci.endswith("\npytest\n")


def test_readme_example_uses_names_that_exist():
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "wb"
    }
    assert {"start", "workload", "run", "compare"} <= used <= set(wb.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_pictures_stand_alone_and_have_words(picture):
    """Readable without the network, on any background, and by a screen reader."""
    svg = ElementTree.parse(picture).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{space}svg"
    assert svg.find(f"{space}title").text
    assert svg.find(f"{space}desc").text
    assert "href" not in picture.read_text()
    assert "url(http" not in picture.read_text()


def test_benchmarks_are_not_part_of_the_suite():
    """They take long and measure; the suite is short and proves."""
    assert list((ROOT / "tests" / "benchmarks").rglob("test_*.py")) == []
