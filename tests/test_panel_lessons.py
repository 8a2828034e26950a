"""Controls that a teacher hides and locks: in the panel, in its share code, restored by it."""

from __future__ import annotations

import pytest
from panel_fakes import until
from test_sharing import forged

from workbench.errors import PlanError
from workbench.sharing import decode, encode
from workbench.strategies import OPTIONS
from workbench.ui import panel

pytestmark = pytest.mark.timeout(60)


def on_page(made) -> set[int]:
    """Return the ids of the widgets that a browser shows: those in no box without display."""

    def seen(widget):
        if widget.layout.display == "none":
            return []
        inner = [each for child in getattr(widget, "children", ()) for each in seen(child)]
        return [id(widget), *inner]

    return set(seen(made._view.root))


def test_a_lesson_hides_and_locks_controls(rooms):
    hidden = ["workload", "compare", "accumulate", *OPTIONS]
    made = panel.app(hidden=hidden, locked=["batch", "strategy"])
    controls = made._view.controls
    shown = on_page(made)
    assert id(controls.fields["workload"]) not in shown
    assert id(controls.options["schedule"]) not in shown
    assert not {id(title) for title in controls._groups.values()} & shown
    assert id(controls.fields["batch"]) in shown
    assert controls.fields["batch"].disabled
    assert all(axis.disabled for axis in controls.axes.values())
    made.close()


def test_what_a_teacher_hides_and_locks_is_in_the_code_and_restored_by_it(opened):
    limits = opened._view.keep._limits
    for control, button in (("seed", "hide"), ("workers", "lock"), ("precision", "lock")):
        limits._control.value = control
        limits._buttons[button].click()
        until(lambda control=control: control in str(limits._limits), "the chip")
    controls = opened._view.controls
    assert id(controls.fields["seed"]) not in on_page(opened)
    code = opened.code
    assert decode(code)["hidden"] == ["seed"]
    assert decode(code)["locked"] == ["workers", "precision"]

    limits._chips.root.children[1].click()  # frees the seed
    until(lambda: id(controls.fields["seed"]) in on_page(opened), "the seed")
    limits._buttons["free"].click()
    until(lambda: not controls.fields["workers"].disabled, "the freedom")
    assert "hidden" not in decode(opened.code)
    assert "locked" not in decode(opened.code)

    opened.restore(code)
    assert id(controls.fields["seed"]) not in on_page(opened)
    assert controls.fields["workers"].disabled
    until(lambda: controls.options["precision"].disabled, "the lock")
    until(lambda: "hidden and locked as the code" in opened._view.keep._said.value, "the sentence")
    assert opened.code == code
    opened.restore(encode({"workload": "digits-cnn"}))
    assert id(controls.fields["seed"]) in on_page(opened)


def test_a_forged_limit_is_refused_and_changes_nothing(opened):
    opened.limit(hidden=["seed"])
    opened.restore(forged({"hidden": ["wheels"]}))
    until(
        lambda: (
            "no control &#x27;wheels&#x27;; there are: workload" in opened._view.keep._said.value
        ),
        "the field and what is allowed",
    )
    assert opened._view.controls.limits["hidden"] == ["seed"]
    with pytest.raises(PlanError, match="no control 'wheels'"):
        opened.limit(locked=["wheels"])


def test_what_is_wrong_with_a_hidden_control_is_told_where_one_looks(opened):
    opened.limit(hidden=["batch"])
    opened._view.controls.fields["batch"].value = 0
    until(lambda: "Batch is 0" in opened._view.controls.notes["accumulate"].value, "the sentence")
