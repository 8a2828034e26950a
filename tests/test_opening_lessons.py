"""`workbench lab`: which notebook it opens, in which language, in JupyterLab or in Voilà."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.errors import PlanError
from workbench.ui import lab

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def english(monkeypatch):
    for name in ("WORKBENCH_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(monkeypatch):
    """Start no server; keep the commands and environments that were asked for."""
    asked = []

    class Server:
        def __init__(self, command, env):
            asked.append(SimpleNamespace(command=command, env=env))

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

        def wait(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Server)
    return asked


@pytest.fixture
def installed(monkeypatch):
    """Say which of the packages that are looked for are there."""
    names = set()
    monkeypatch.setattr(lab, "find_spec", lambda name: "found" if name in names else None)
    return names


def test_pages_are_put_beside_every_lesson_and_no_other_notebook():
    [script] = lab.CONFIG.rglob("remoteEntry.js")
    [pattern] = re.findall(r"const LESSON = /(.*)/;", script.read_text())
    beside = re.compile(pattern.replace("\\/", "/"))
    notebooks = [path.relative_to(NOTEBOOKS).as_posix() for path in NOTEBOOKS.rglob("*.ipynb")]
    found = {name for name in notebooks if beside.search(name)}
    assert {name for name in notebooks if name not in found} == {lab.KIOSK}
    assert len(found) == 22
    assert beside.search("mine/06-own.ipynb") is None


@pytest.mark.parametrize("number", ["06", "6"])
def test_a_lesson_is_opened_by_its_number(tmp_path, launched, number):
    assert lab.launch_lab(tmp_path / "mine", lesson=number) == 0
    [server] = launched
    assert "--LabApp.default_url=/lab/tree/06-convolutions-and-halos.ipynb" in server.command
    assert (tmp_path / "mine" / "06-convolutions-and-halos.ipynb").exists()
    assert "WORKBENCH_LANG" not in server.env


@pytest.mark.parametrize("lesson", ["11", "x", "", "000", "../00"])
def test_a_lesson_that_there_is_not_is_refused_with_those_that_there_are(
    tmp_path, launched, lesson
):
    with pytest.raises(PlanError, match=r"There is no lesson .*there are: 00-start-here, 01-"):
        lab.launch_lab(tmp_path / "mine", lesson=lesson)
    assert launched == []
    assert not (tmp_path / "mine").exists()


def test_a_lesson_comes_in_the_language_asked_for(tmp_path, launched):
    lab.launch_lab(tmp_path, lang="zh")
    lab.launch_lab(tmp_path, lang="zh", lesson="08")
    lab.launch_lab(tmp_path, lang="en")
    zh, eighth, en = launched
    assert "--LabApp.default_url=/lab/tree/zh/00-start-here.ipynb" in zh.command
    assert (tmp_path / "zh" / "00-start-here.ipynb").exists()
    assert "--LabApp.default_url=/lab/tree/zh/08-why-is-it-slow.ipynb" in eighth.command
    assert (tmp_path / "zh" / "08-why-is-it-slow.ipynb").exists()
    assert "--LabApp.default_url=/lab/tree/00-start-here.ipynb" in en.command
    assert [each.env["WORKBENCH_LANG"] for each in launched] == ["zh", "zh", "en"]


def test_the_language_of_the_environment_is_that_of_the_lesson(tmp_path, launched, monkeypatch):
    monkeypatch.setenv("WORKBENCH_LANG", "zh")
    lab.launch_lab(tmp_path)
    lab.launch_lab(tmp_path, lang="en")
    zh, en = launched
    assert "--LabApp.default_url=/lab/tree/zh/00-start-here.ipynb" in zh.command
    assert "--LabApp.default_url=/lab/tree/00-start-here.ipynb" in en.command


def test_jupyterlab_itself_speaks_it_where_its_language_pack_is_installed(installed):
    assert "jupyter_config_zh" not in lab.lab_environment("zh")["JUPYTER_CONFIG_PATH"]
    installed.add("jupyterlab_language_pack_zh_CN")
    first, *_ = lab.lab_environment("zh")["JUPYTER_CONFIG_PATH"].split(":")
    settings = lab.CONFIG.with_name("jupyter_config_zh") / "labconfig"
    assert first == str(settings.parent)
    [file] = settings.iterdir()
    [setting] = json.loads(file.read_text()).values()
    assert setting == {"locale": "zh_CN"}
    assert "jupyter_config_zh" not in lab.lab_environment("en")["JUPYTER_CONFIG_PATH"]


def test_voila_shows_the_panel_alone_on_loopback_behind_a_token(tmp_path, launched, installed):
    installed.add("voila")
    lab.launch_lab(tmp_path, voila=True, port=0, browser=False, lang="zh")
    [server] = launched
    assert server.command[1:3] == ["-m", "voila"]
    assert str(tmp_path / "panel.ipynb") in server.command
    assert {"--Voila.ip=127.0.0.1", "--Voila.auto_token=True", "--no-browser"} <= set(
        server.command
    )
    # Voilà would print port 0 in its address.
    (port,) = (each for each in server.command if each.startswith("--port="))
    assert int(port.removeprefix("--port=")) > 0
    assert server.env["WORKBENCH_LANG"] == "zh"


def test_a_page_of_voila_may_ask_nobody_but_its_own_server():
    settings = json.loads((lab.CONFIG / "voila.json").read_text())["Voila"]["tornado_settings"]
    policy = settings["headers"]["Content-Security-Policy"]
    assert policy.startswith("default-src 'self' ")
    assert not {"http", "https", "*"} & set(re.findall(r"[\w*]+", policy))


def test_without_voila_a_sentence_says_how_to_install_it(tmp_path, launched, installed):
    with pytest.raises(PlanError, match=r"pip install 'voila>=0.5,<0.6' installs it"):
        lab.launch_lab(tmp_path / "mine", voila=True)
    assert launched == []
    assert not (tmp_path / "mine").exists()
