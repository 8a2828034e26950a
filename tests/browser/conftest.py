"""One browser and one JupyterLab for all tests; each has a page and a kernel of its own."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import CHROMIUM, Watched, chromium, served, write_notebook

from workbench.ui.lab import lab_command, place_notebooks


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: nothing to look at the panel with")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with chromium() as opened:
        yield opened


@pytest.fixture
def watched(browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_navigation_timeout(120_000)  # a server on a busy machine takes its time
    yield Watched(context.new_page())
    context.close()


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory) -> Path:
    """The folder that JupyterLab shows."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory, notebooks: Path, browser) -> Iterator[str]:
    """Start JupyterLab as `workbench lab` does, and give its address, token included."""
    notebook = place_notebooks(notebooks)
    notebook.write_text(notebook.read_text().replace("wb.app()", "wb.app(repeats=1)"))
    root = tmp_path_factory.mktemp("lab")
    command = lab_command(notebooks, port=0, browser=False)
    command.append("--LabApp.expose_app_in_browser=True")  # commands by name, see hands.do
    with served(command, root, r"http://127\.0\.0\.1:\d+/\S*\?token=\w+") as address:
        yield address


@pytest.fixture
def notebook(notebooks: Path, jupyter: str, request) -> Iterator[Callable[..., str]]:
    """Return what makes a notebook of code cells and gives its address; its kernel ends after."""
    base, _, query = jupyter.partition("?")
    base = base.partition("/lab")[0]
    name = re.sub(r"\W", "-", request.node.name)

    def make(*cells: str) -> str:
        file = write_notebook(notebooks / f"{name}.ipynb", *cells)
        return f"{base}/lab/workspaces/{name}/tree/{file}?{query}"  # none that others have opened

    yield make
    end_kernels(base, query.partition("token=")[2])


def end_kernels(base: str, token: str) -> None:
    """End every kernel of a Jupyter server, and with it the cluster that it has started."""

    def ask(path: str, method: str) -> bytes:
        headers = {"Authorization": f"token {token}"}
        asked = urllib.request.Request(f"{base}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.read()

    for kernel in json.loads(ask("kernels", "GET")):
        ask(f"kernels/{kernel['id']}", "DELETE")
