"""The whole panel in Chinese, before a run and after one: no English is left but names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from bokeh.models import Axis, Label, LegendItem, Title
from panel_fakes import fake_rooms, until

from workbench.catalogue import CATALOGUE
from workbench.strategies import STRATEGIES
from workbench.ui import panel
from workbench.ui.widget import all_of

pytestmark = pytest.mark.timeout(60)

NAMES = {
    "rank",
    "serial",
    "torch",
    "Python",
    "Dask",
    "Perfetto",
    "Ctrl",
    "workbench-runs",
    "Power",
    "Top",
    "Tab",
    "Karp",
    "Flatt",
    "powersgd",
    "topk",
    "gpipe",
    "nesterov",
}
NAMES |= {"workbench", "exports", "panel", "run", "wait", "JupyterLab", "namespace", "ranks"}
NAMES |= {*STRATEGIES, *(word for name in CATALOGUE for word in re.findall("[a-z]+", name))}
"""What is written as it is in every language; the plan of these tests is a namespace of ranks."""


def said(made: panel.Panel) -> Iterator[str]:
    """Yield all that the panel's widgets and figures say to people."""
    for widget in all_of(made._view.root):
        for trait in ("value", "description", "tooltip", "placeholder"):
            text = getattr(widget, trait, None)
            chosen = trait == "value" and hasattr(widget, "options")  # written as in Python
            if isinstance(text, str) and not chosen and "<style" not in text:
                yield re.sub(r"<pre.*?</pre>|<[^>]*>", " ", text, flags=re.DOTALL)
        for option in getattr(widget, "options", ()):
            if isinstance(option, tuple):  # a label, and what it stands for
                yield str(option[0])
    for chart in made._view._charts:
        for model in chart.figure.references():
            if isinstance(model, Title | Label) and isinstance(model.text, str):
                yield model.text
            if isinstance(model, Axis) and isinstance(model.axis_label, str):
                yield model.axis_label
            if isinstance(model, LegendItem):
                yield str(getattr(model.label, "value", ""))


def english(made: panel.Panel) -> set[str]:
    return {
        word for text in said(made) for word in re.findall("workbench-runs|[A-Za-z][a-z]{2,}", text)
    } - NAMES


def test_what_was_said_before_is_said_again(monkeypatch):
    """Of a run that has ended, after one that was refused, and of what was asked in between."""
    rooms = fake_rooms(monkeypatch)
    made = panel.app(lang="en", workers=2, steps=12)
    try:
        made.run()
        until(lambda: rooms.compared, "the comparison")
        rooms.compared[0][-1].go_on("done")
        until(lambda: "data=2" in made._view._table.value, "the table")
        made.restore(made.code)
        made._view.controls.fields["batch"].value = 0
        made.run()
        until(lambda: made.state.status == "failed", "the refusal")
        assert made.state.found
        made.speak("zh")
        until(lambda: "没有启动" in made._view.actions.message.value, "Chinese")
        assert "按分享码" in made._view.keep._said.value
        until(lambda: english(made) == set(), "the rest of it in Chinese")
        assert len(made.state.curves) == 3
        made.speak("en")
        until(lambda: "Measured on 2 workers" in made._view._place.value, "English")
        labels = [curve.label for curve in made.state.curves]
        assert labels == ["serial, 1 thread", "serial, 2 threads", "data=2"]
    finally:
        made.close()


def test_what_broke_is_said_again(monkeypatch):
    rooms = fake_rooms(monkeypatch)
    made = panel.app(lang="zh", workers=2, steps=12)
    try:
        monkeypatch.setattr("workbench.ui.driver.compare", lambda *_args, **_options: 1 / 0)
        made.run()
        until(lambda: "面板无法运行它" in made._view._problem.value, "Chinese")
        made.speak("en")
        until(lambda: "The panel could not run this" in made._view._problem.value, "English")
        assert not rooms.compared
    finally:
        made.close()


def test_the_panel_says_nothing_in_english_that_is_no_name(monkeypatch):
    rooms = fake_rooms(monkeypatch)
    made = panel.app(lang="zh", workers=2, steps=12)
    try:
        until(lambda: "准备就绪" in made._view.actions.message.value, "the panel")
        assert english(made) == set()
        made.run()
        until(lambda: rooms.compared, "the comparison")
        rooms.compared[0][-1].go_on("done")
        until(lambda: "完成" in made._view.actions.message.value, "the end")  # which is told last
        assert english(made) == set()
        made.speak("en")
        until(lambda: "Done" in made._view.actions.message.value, "English")
        assert len(english(made)) > 100
    finally:
        made.close()
