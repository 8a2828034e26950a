"""What cannot be chosen: found during runs too, taken back at once, told where one looks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from panel_fakes import until

from workbench.errors import PlanError
from workbench.ui import driver, form, impossible, panel
from workbench.ui.impossible import Trying, marks, reasons, taken_back
from workbench.ui.language import speaking

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def no_tensor(rooms, monkeypatch):
    """Refuse whatever has tensor in it."""
    could = driver.plan

    def plan(work, strategy, **options):
        if "tensor" in strategy:
            raise PlanError("There is <nothing> to cut.")
        return could(work, strategy, **options)

    monkeypatch.setattr(driver, "plan", plan)
    return rooms


def test_a_degree_that_cannot_be_is_taken_back_with_the_reason_beside_it(no_tensor):
    opened = panel.app(workers=4, batch=32, steps=12)
    controls = opened._view.controls
    axis, note = controls.axes["tensor"], controls.notes["strategy"]
    until(lambda: ("2 ✗", "2") in axis.options, "the mark")
    axis.value = "2"  # as somebody who wants to know
    until(lambda: axis.value == "1", "the old degree")
    until(lambda: "tensor=2 was not taken: There is &lt;nothing&gt;" in note.value, "the reason")
    assert 'role="alert"' in note.value
    opened.speak("zh")
    until(lambda: "没有采用 tensor=2" in note.value, "Chinese")
    opened.speak("en")
    controls.axes["data"].value = "2" if controls.axes["data"].value != "2" else "3"
    until(lambda: "not taken" not in note.value, "the end of the sentence")
    opened.close()


def test_what_a_preset_or_share_code_asks_for_stays_and_is_told(no_tensor):
    opened = panel.app(workers=4, batch=32, steps=12, strategy="tensor=2")
    note = opened._view.controls.notes["strategy"]
    until(lambda: "There is &lt;nothing&gt;" in note.value, "the reason")
    assert opened._view.request().strategy == "tensor=2"
    opened.close()


def test_it_is_found_while_a_run_goes_on(no_tensor):
    opened = panel.app(workers=2, batch=32, steps=12)
    opened.run()
    until(lambda: no_tensor.compared, "the run")
    opened._view.controls.fields["workers"].value = 3
    axis = opened._view.controls.axes["tensor"]
    until(lambda: ("3 ✗", "3") in axis.options, "the mark")
    assert opened.state.busy
    no_tensor.compared[0][-1].go_on("done")
    opened.close()


def test_trying_takes_little_from_what_runs(monkeypatch):
    now_s, left = [100.0], [1000]
    monkeypatch.setattr(impossible, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def try_one() -> bool:
        now_s[0] += 0.03
        left[0] -= 1
        return left[0] > 0

    trying = Trying(try_one)
    trying.go(busy=False)
    assert left == [996]  # as many as fit
    left[0], begun_s = 1000, now_s[0]
    for _ in range(240):
        now_s[0] += 0.25
        trying.go(busy=True)
    spent_s = 0.03 * (1000 - left[0])
    assert 0.01 < spent_s / (now_s[0] - begun_s) <= impossible.BUSY_SHARE + 0.001


def test_only_a_single_degree_whose_mark_was_seen_is_taken_back():
    before = form.request(None, {"workers": 4, "strategy": "data=2"})
    base = before.basis
    refused = {
        (base, "data=2,tensor=2"): "No <a>.",
        (base, "tensor=3"): "No b.",
        (base, "data=3"): "",
    }
    assert marks(before, refused) == {"tensor": {"2": "No <a>.", "3": "No b."}}

    def after(**axes):
        return form.replace(before, axes=tuple(axes.items()))

    back = taken_back(before, after(data="2", tensor="3"), refused)
    assert (back.axis, back.degree, back.why, back.left) == ("tensor", "3", "No b.", before)
    assert taken_back(before, after(data="3"), refused) is None
    assert taken_back(before, after(tensor="2"), refused) is None  # two changes
    assert taken_back(before, form.replace(after(data="2", tensor="2"), batch=7), refused) is None
    with speaking("en"):
        told = reasons(marks(before, refused))
    seen, _, folded = told.partition("<details>")
    assert "✗ tensor = 2, 3</b>: No &lt;a&gt;." in seen
    assert "tensor=3</b>: No b." in folded
    assert reasons({}) == ""
