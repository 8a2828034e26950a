"""JupyterLab, or Voilà, opened on the reader's own copy of a lesson."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from workbench.errors import PlanError, RunError
from workbench.ui.language import preferred

START = "00-start-here.ipynb"
KIOSK = "panel.ipynb"
FOLDER = "workbench-notebooks"
CONFIG = Path(__file__).parent / "jupyter_config"
LANGUAGES = {"en": "", "zh": "jupyterlab_language_pack_zh_CN"}
"""Languages by their code, with the package that teaches JupyterLab's own menus to speak it."""


def launch_lab(
    folder: str | Path = FOLDER,
    *,
    port: int | None = None,
    browser: bool = True,
    lesson: str = "00",
    lang: str | None = None,
    voila: bool = False,
) -> int:
    """Start JupyterLab on a lesson, wait until it ends, and return its exit status.

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
    lesson:
        Number of the lesson to open: ``"06"`` or ``"6"``.
    lang:
        ``"en"`` or ``"zh"``: the language of the panel, of the lesson if it is there in that
        language, and of JupyterLab if its language pack is installed. By default that of the
        environment variable WORKBENCH_LANG or of the locale.
    voila:
        Show the panel alone, as a page of Voilà's without cells, and no lesson.

    Raises
    ------
    PlanError
        There is no such lesson, the folder cannot be written, the port cannot be one, or Voilà is
        asked for and not installed.
    RunError
        The notebooks are missing from the installation.
    """
    if port is not None and not 0 <= port <= 65535:
        raise PlanError(f"Port {port} is not one; ports go from 1 to 65535; 0 takes a free one.")
    notebook = KIOSK if voila else lesson_file(lesson, preferred(lang))
    if voila and find_spec("voila") is None:
        raise PlanError(
            "--voila needs Voilà, which is not installed; pip install 'voila>=0.5,<0.6' installs "
            "it, as does the extra [classroom] of this package."
        )
    place_notebooks(folder)
    make = voila_command if voila else lab_command
    command = make(folder, port=port, browser=browser, notebook=notebook)
    with subprocess.Popen(command, env=lab_environment(lang)) as server:
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:
                continue  # the same key has reached the server, which is ending


def lesson_file(lesson: str, lang: str | None = None) -> str:
    """Return the file of a lesson, relative to the folder: in ``lang`` if there is one.

    Raises
    ------
    PlanError
        There is no such lesson; lists those that there are.
    """
    source = _notebooks()
    lessons = {path.name[:2]: path.name for path in sorted(source.glob("[0-9][0-9]-*.ipynb"))}
    name = lessons.get(lesson.zfill(2) if lesson else "")
    if name is None:
        listed = ", ".join(file.removesuffix(".ipynb") for file in lessons.values())
        raise PlanError(f"There is no lesson {lesson!r}; there are: {listed}.")
    translated = f"{lang}/{name}"
    return translated if lang and (source / translated).is_file() else name


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
        for notebook in sorted(source.rglob("*.ipynb")):
            copy = folder / notebook.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copyfile(notebook, copy)
    except OSError as error:
        raise PlanError(
            f"The notebooks cannot be put into {folder}: {error.strerror or error}; "
            f"name another folder."
        ) from error
    return folder / START


def lab_command(
    folder: str | Path, *, port: int | None = None, browser: bool = True, notebook: str = START
) -> list[str]:
    """Return the command that starts JupyterLab in ``folder`` with a notebook open."""
    command = [
        sys.executable,
        *("-m", "jupyterlab"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={Path(folder).resolve()}",
        f"--LabApp.default_url=/lab/tree/{notebook}",
        # Runs the start notebook's first cell. It is in no other server: there people run cells.
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


def voila_command(
    folder: str | Path, *, port: int | None = None, browser: bool = True, notebook: str = KIOSK
) -> list[str]:
    """Return the command that starts Voilà on a notebook in ``folder``.

    Voilà does not tell which port it got of those that are free, so one is chosen here. Its page
    names a style sheet on the network. ``voila.json`` in our configuration has a content
    security policy under which the browser asks nobody but this server.
    """
    command = [
        sys.executable,
        *("-m", "voila", str(Path(folder).resolve() / notebook)),
        "--Voila.ip=127.0.0.1",
        "--Voila.auto_token=True",  # whoever else has an account here may not press Run
        "--show_tracebacks=True",
    ]
    if port is not None:
        command.append(f"--port={port or _free_port()}")
    if not browser:
        command.append("--no-browser")
    return command


def lab_environment(lang: str | None = None) -> dict[str, str]:
    """Return the environment for JupyterLab: our defaults for its settings; the user's own win.

    Kernels get it too, so ``lang`` is the language of the panel.
    """
    ours = [CONFIG]
    chosen = {} if lang is None else {"WORKBENCH_LANG": lang}
    spoken = preferred(lang)
    pack = LANGUAGES[spoken]
    if pack and find_spec(pack) is not None:
        ours.insert(0, CONFIG.with_name(f"jupyter_config_{spoken}"))
    paths = [*map(str, ours), os.environ.get("JUPYTER_CONFIG_PATH")]
    joined = os.pathsep.join(path for path in paths if path)
    return {**os.environ, **chosen, "JUPYTER_CONFIG_PATH": joined}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
