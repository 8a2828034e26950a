"""JupyterLab on a free port, and headless Chromium that may reach nothing else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import workbench
from workbench.ui.lab import lab_command, lab_environment, place_notebooks

FLAGS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = ("127.0.0.1", "localhost")


class Watched:
    """A page, with what it complained of and what it asked of other machines."""

    def __init__(self, page):
        self.page = page
        self.errors: list[str] = []
        self.strayed: list[str] = []
        page.route("**/*", self._filter)
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _filter(self, route):
        url = urlsplit(route.request.url)
        if url.scheme in ("file", "data", "blob") or url.hostname in LOCAL:
            route.continue_()
        else:
            self.strayed.append(route.request.url)
            route.abort()

    def _listen(self, message):
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine: nothing to look at the panel with")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def watched(browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield Watched(context.new_page())
    context.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory, browser) -> Iterator[str]:
    """Start JupyterLab as `workbench lab` does, and give its address, token included."""
    root = tmp_path_factory.mktemp("lab")
    notebook = place_notebooks(root / "notebooks")
    notebook.write_text(notebook.read_text().replace("wb.app()", "wb.app(repeats=1)"))
    own = {
        name: str(root / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    own["PYTHONPATH"] = str(Path(workbench.__file__).parents[1])  # the kernel's is the tested one
    own["WORKBENCH_FAST"] = "1"
    log = root / "lab.log"
    with log.open("w") as sink:
        server = subprocess.Popen(
            lab_command(root / "notebooks", port=0, browser=False),
            env={**lab_environment(), **own},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _address(server, log)
    finally:
        _end(server)


def _address(server: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+/\S*\?token=\w+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


def _end(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGTERM)  # it shuts its kernels down, and they their clusters
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(5)
