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


def test_the_panel_says_nothing_in_english_that_is_no_name(monkeypatch):
    rooms = fake_rooms(monkeypatch)
    made = panel.app(lang="zh", workers=2, steps=12)
    try:
        until(lambda: "准备就绪" in made._view.actions.message.value, "the panel")
        assert english(made) == set()
        made.run()
        until(lambda: rooms.compared, "the comparison")
        rooms.compared[0][-1].go_on("done")
        until(lambda: "data=2" in made._view._table.value, "the table")
        assert english(made) == set()
        made.speak("en")
        until(lambda: "Done" in made._view.actions.message.value, "English")
        assert len(english(made)) > 100
    finally:
        made.close()
