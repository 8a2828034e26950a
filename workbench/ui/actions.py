"""The buttons: run, pause, step, stop, train and go on; what goes on; and the guess before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.ui.guess import Guess, verdict
from workbench.ui.language import LANGUAGES, current, text
from workbench.ui.state import State
from workbench.ui.widget import box, put

Press = Callable[[], None]
"""What a button does: called on one of the kernel's threads, returns at once."""


@dataclass(frozen=True)
class Presses:
    """What the buttons do."""

    run: Press
    pause: Press
    step: Press
    sweep: Press
    train: Press
    start_over: Press
    stop: Press
    start_cluster: Press
    lock: Press
    language: Callable[[str], None]


class Actions:
    """The row of buttons with the progress, and the row of the guess."""

    def __init__(self, presses: Presses, predict_first: bool) -> None:
        self.run = _button("play", "primary", "wb-run", presses.run)
        self.pause = _button("pause", "", "wb-pause", presses.pause)
        self.step = _button("step-forward", "", "wb-step", presses.step)
        self.sweep = _button("th", "", "wb-sweep", presses.sweep)
        self.stop = _button("stop", "danger", "wb-stop", presses.stop)
        self.train = _button("graduation-cap", "", "wb-train", presses.train)
        self.start_over = _button("undo", "", "wb-over", presses.start_over)
        self.cluster = _button("server", "warning", "wb-cluster", presses.start_cluster)
        self.lock = _button("lock", "", "wb-lock", presses.lock)
        self.language = widgets.ToggleButtons(
            options=[(name, code) for code, name in LANGUAGES.items()], value=current()
        )
        self.language.add_class("wb-language")
        self.guess = widgets.BoundedFloatText(value=1.0, min=0.01, max=1000.0, step=0.1)
        self.because = widgets.Text()
        self.progress = widgets.FloatProgress(min=0.0, max=1.0)
        self.message = widgets.HTML()
        self.message.add_class("wb-message")
        self._verdict = widgets.HTML()
        self._predict_first = predict_first
        self.locked: Guess | None = None
        put(self.cluster.layout, "none", "display")
        self.root = box(
            [
                *(self.run, self.pause, self.step, self.stop),
                *(self.sweep, self.train, self.start_over, self.progress, self.message),
            ],
            "wb-buttons",
        )
        self.predict = box([self.guess, self.because, self.lock, self._verdict], "wb-predict")
        self.language.observe(lambda change: presses.language(change["new"]), "value")

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        for name in ("run", "step", "stop", "sweep", "start_over", "cluster"):
            button = getattr(self, name)
            button.description = text(f"button.{name}")
            button.tooltip = text(f"button.{name}.tip")
        self.pause.tooltip = text("button.pause.tip")
        self.train.tooltip = text("button.train.tip")
        self.lock.tooltip = text("button.lock.tip")
        self.guess.description = text("guess.label")
        self.because.placeholder = text("guess.because")
        put(self.language, current())

    def show(self, state: State, strategy: str, said: State | None = None) -> None:
        """Bring the buttons up to date.

        Parameters
        ----------
        strategy:
            The one that is chosen now.
        said:
            An earlier state whose message and progress are still good enough, if there is one.
        """
        said = said or state
        put(self.message, f'<span class="wb-{said.status}">{escape(said.message)}</span>')
        put(self.progress, said.done)
        put(self.progress, _BAR.get(state.status, ""), "bar_style")
        must_guess = self._predict_first and self.locked is None
        put(self.run, state.busy or must_guess, "disabled")
        put(self.sweep, state.busy or must_guess, "disabled")
        paused = state.status == "paused"
        put(self.pause, state.status not in ("running", "paused"), "disabled")
        put(self.pause, text("button.resume" if paused else "button.pause"), "description")
        put(self.pause, "play" if paused else "pause", "icon")
        put(self.step, not paused, "disabled")
        can_stop = state.busy or state.status == "followed"
        put(self.stop, not can_stop or state.status == "stopping", "disabled")
        training = state.busy and state.kind == "train"
        asked = state.request
        switch = training and asked is not None and asked.strategy != strategy
        put(self.train, must_guess if not state.busy else not switch, "disabled")
        goes_on = state.can_go_on or training
        label = text("button.go_on", strategy=strategy) if goes_on else text("button.train")
        put(self.train, label, "description")
        put(self.start_over, not state.can_go_on or state.busy, "disabled")
        put(self.cluster.layout, "" if state.gone else "none", "display")
        self._show_guess(state, must_guess)

    def _show_guess(self, state: State, must_guess: bool) -> None:
        locked = self.locked
        put(self.guess, locked is not None, "disabled")
        put(self.because, locked is not None, "disabled")
        put(self.lock, text("button.unlock" if locked else "button.lock"), "description")
        put(self.lock, "unlock" if locked else "lock", "icon")
        put(self.lock, state.busy, "disabled")
        said = text("guess.first") if must_guess else ""
        if locked is not None:
            row = locked.measured(state.request, state.points)
            strategy = locked.request.strategy
            said = verdict(locked, row) if row else text("guess.locked", strategy=strategy)
        put(self._verdict, f'<span role="status">{escape(said)}</span>')


_BAR = {"done": "success", "failed": "danger", "stopped": "warning", "paused": "warning"}
"""How the progress bar is coloured; the message beside it says the same in words."""


def _button(icon: str, style: str, name: str, press: Press) -> Any:
    button = widgets.Button(icon=icon, button_style=style)
    button.add_class(name)
    button.on_click(lambda _button: press())
    return button
