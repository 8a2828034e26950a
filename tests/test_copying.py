"""What the panel has to copy, and its small pieces of HTML."""

from __future__ import annotations

import re

import pytest
from fake_comparison import ROWS
from test_cut import images

from workbench.planning import plan
from workbench.ui.costs import costs
from workbench.ui.language import speaking
from workbench.ui.plan_view import PlanView
from workbench.ui.sayings import caution
from workbench.ui.widget import copied


def test_what_is_copied_can_be_reached_and_is_escaped() -> None:
    html = copied("Code <b>", "x < 'y' & \"z\"")
    assert '<pre tabindex="0" aria-label="Code &lt;b&gt;">x &lt; &#x27;y&#x27; &amp;' in html
    [button] = re.findall(r"<button .*?</button>", html)
    assert 'type="button"' in button
    assert "execCommand(&#x27;copy&#x27;)" in button
    assert html.count("<b>") == 0


def test_costs_have_a_heading_and_say_what_they_are() -> None:
    html = costs(ROWS)
    assert html.startswith("<h4>Cost</h4>")
    assert "A core-second is one core" in html
    assert costs([]) == ""


def test_the_panels_picture_of_the_cut_has_its_data_and_how_to_read_it() -> None:
    found = plan(images(), "data=2")
    with speaking("en"):
        view = PlanView()
        view.speak()
        view.show((None, found))  # type: ignore[arg-type]
    assert "held by" in view._about._data.value
    assert "Its weight" in view._about._data.value
    assert "From left to right" in view._about._how.value
    before = view._about._data.value
    view._layer.value = "6"
    assert view._about._data.value != before
    view.show((None, plan(images(), "serial")))  # type: ignore[arg-type]
    assert "<table" not in view._about._data.value


@pytest.mark.parametrize("threads", ["1 thread", "2 threads"])
def test_baselines_of_compared_runs_are_named_in_chinese(threads: str) -> None:
    named = f"1 process × {threads} 12.5 ms, 1 process × {threads} 80 ms"
    with speaking("zh"):
        said = caution("baselines", {"named": named})
    assert "12.5 ms" in said
    assert "80 ms" in said
    assert not set(re.findall("[A-Za-z]{3,}", said))
