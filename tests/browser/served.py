"""Servers as people start them, and a headless Chromium that may reach nothing but them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import workbench
from workbench.ui.lab import lab_environment

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
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_LIMIT_S = 60.0


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """Yield a headless Chromium, that of the system."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        yield browser
        browser.close()


class Watched:
    """A page, with what it complained of and what it asked of other machines."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.strayed: list[str] = []
        page.route("**/*", self._filter)
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _filter(self, route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("file", "data", "blob") or url.hostname in LOCAL:
            route.continue_()
        else:
            self.strayed.append(route.request.url)
            route.abort()

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


@contextmanager
def served(command: Sequence[str], root: Path, address: str) -> Iterator[str]:
    """Start a Jupyter server, give its address, and end it with all that it has started.

    Parameters
    ----------
    root:
        An empty folder for its settings, none of which are the user's, and its log.
    address:
        How the address looks that it prints, as a regular expression.
    """
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
    log = root / "server.log"
    with log.open("w") as sink:
        server = subprocess.Popen(
            command,
            env={**lab_environment(), **own},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _printed(server, log, address)
    finally:
        _end(server)


def write_notebook(path: Path, *cells: str) -> str:
    """Write a notebook of code cells, and return its name."""
    made = [
        {"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "source": source, "outputs": []}
        | {"execution_count": None}
        for n, source in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book))
    return path.name


def _printed(server: subprocess.Popen[bytes], log: Path, address: str) -> str:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(address, log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"The server did not start:\n{log.read_text()}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)  # it shuts its kernels down, and they their clusters
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(5)
