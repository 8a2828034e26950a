"""JupyterLab, opened on the reader's own copy of the start notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from workbench.errors import PlanError, RunError

START = "00-start-here.ipynb"
FOLDER = "workbench-notebooks"
CONFIG = Path(__file__).parent / "jupyter_config"


def launch_lab(
    folder: str | Path = FOLDER, *, port: int | None = None, browser: bool = True
) -> int:
    """Start JupyterLab on the start notebook, wait until it ends, and return its exit status.

    It listens on 127.0.0.1 alone and asks for a token, which stands in the address that it prints.

    Parameters
    ----------
    folder:
        Where the notebooks are copied to and work is kept; made if it is missing. Files that are
        there already are never written over.
    port:
        Port to listen on, 0 for any that is free; by default 8888 or the next free one.
    browser:
        Whether to open a web browser.

    Raises
    ------
    PlanError
        The folder cannot be written, or the port cannot be one.
    RunError
        The notebooks are missing from the installation.
    """
    if port is not None and not 0 <= port <= 65535:
        raise PlanError(f"Port {port} is not one; ports go from 1 to 65535; 0 takes a free one.")
    place_notebooks(folder)
    command = lab_command(folder, port=port, browser=browser)
    with subprocess.Popen(command, env=lab_environment()) as server:
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:
                continue  # the same key has reached the server, which is ending


def place_notebooks(folder: str | Path) -> Path:
    """Copy the notebooks that are not yet in ``folder``, and return the start notebook there.

    Raises
    ------
    PlanError
        The folder cannot be written.
    RunError
        The notebooks are missing from the installation.
    """
    source = _notebooks()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(source.glob("*.ipynb")):
            if not (folder / notebook.name).exists():
                shutil.copyfile(notebook, folder / notebook.name)
    except OSError as error:
        raise PlanError(
            f"The notebooks cannot be put into {folder}: {error.strerror or error}; "
            f"name another folder."
        ) from error
    return folder / START


def lab_command(folder: str | Path, *, port: int | None = None, browser: bool = True) -> list[str]:
    """Return the command that starts JupyterLab in ``folder``: start notebook and panel open."""
    command = [
        sys.executable,
        *("-m", "jupyterlab"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={Path(folder).resolve()}",
        f"--LabApp.default_url=/lab/tree/{START}",
        # Runs the notebook's first cell. It is in no other server: there people run cells.
        f"--LabApp.extra_labextensions_path={CONFIG / 'labextensions'}",
        "--ServerApp.answer_yes=True",  # Ctrl-C ends it without a question
    ]
    if port is not None:
        command.append(f"--ServerApp.port={port}")
    if not browser:
        command.append("--no-browser")
    if os.geteuid() == 0:
        command.append("--allow-root")  # in containers people are root; it stays on loopback
    return command


def lab_environment() -> dict[str, str]:
    """Return the environment for JupyterLab: our defaults for its settings; the user's own win."""
    paths = [str(CONFIG), os.environ.get("JUPYTER_CONFIG_PATH")]
    return {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(path for path in paths if path)}


def _notebooks() -> Path:
    """Return the folder of the notebooks: in the installed package, or in the source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if (folder / START).is_file():
            return folder
    raise RunError(
        f"The notebooks are missing from this installation ({START} is neither in {package} nor "
        f"beside it); install the package again."
    )
