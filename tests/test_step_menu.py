"""The menus above the timeline: what was recorded, and which of its steps."""

from __future__ import annotations

from types import SimpleNamespace

from workbench.timeline import WHICH
from workbench.ui.language import speaking
from workbench.ui.state import Watcher
from workbench.ui.step_menu import StepMenu


def test_a_choice_is_told_and_what_is_filled_in_is_none() -> None:
    told: list[tuple[str, str]] = []
    menu = StepMenu(lambda label, which: told.append((label, which)))
    assert menu.root.layout.display == "none"
    with speaking("en"):
        menu.speak()
        menu.show(["serial, 1 thread", "data=2, 1 thread"], "data=2, 1 thread")
    assert menu.label.value == "data=2, 1 thread"
    assert [name for _, name in menu.which.options] == list(WHICH)
    assert told == []
    menu.which.value = "slowest"
    menu.label.value = "serial, 1 thread"
    assert told == [("", "slowest"), ("serial, 1 thread", "slowest")]
    with speaking("zh"):
        menu.speak()
    assert menu.which.value == "slowest"
    assert menu.label.value == "serial, 1 thread"
    assert len(told) == 2
    assert menu.label.options[0][0] != "serial, 1 thread"
    menu.show(["tensor=2, 1 thread"], "tensor=2, 1 thread")
    assert menu.label.value == "tensor=2, 1 thread"
    assert len(told) == 2


def test_the_state_follows_the_choice_after_the_end_too() -> None:
    driver = SimpleNamespace(
        job=None,
        using=SimpleNamespace(gone=False, opening=0, dashboard=""),
        broken=(),
        training=None,
        earlier=SimpleNamespace(folders=()),
    )
    watcher = Watcher(driver)  # type: ignore[arg-type]
    before = watcher.look()
    assert watcher.look() is before
    watcher.look_at("data=2", "fastest")
    assert watcher.look() is not before
