"""The controls with which one picks what to run; the axes and options are those of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench import machine
from workbench.catalogue import CATALOGUE
from workbench.strategies import OPTIONS, STRATEGIES
from workbench.strategies.choices import users
from workbench.strategies.notation import parse
from workbench.ui import form, texts
from workbench.ui.described import Described
from workbench.ui.form import OWN, Request
from workbench.ui.impossible import Refused, TakenBack, marks, reasons, taken_back
from workbench.ui.language import known, text, translate
from workbench.ui.look import CROSS
from workbench.ui.widget import Chips, Fold, box, hint, problem, put

NUMBERS = ("batch", "steps", "repeats", "seed", "workers")
AUTO = 0
"""Stands in the menu for as many threads as there are cores for each rank."""

FIELDS = ("workload", *NUMBERS, "threads")


class Controls:
    """The widgets, and what they ask for.

    Parameters
    ----------
    asked:
        What they show at first.
    own_name:
        Name of the user's own workload, or None.
    limits:
        Names of controls that are ``"hidden"`` and ``"locked"``, as a teacher wishes, see
        :func:`workbench.controls.checked`.

    Attributes
    ----------
    limits:
        The same, as they are now.
    """

    def __init__(
        self, asked: Request, own_name: str | None, limits: Mapping[str, Sequence[str]]
    ) -> None:
        self._own_name = own_name
        self.limits: Mapping[str, Sequence[str]] = limits
        self._cores = machine.cores()
        self._described: Described | None = None
        self._also: tuple[str, ...] = ()
        self._default_seed = 0
        self.fields: dict[str, Any] = {
            "workload": widgets.Dropdown(options=self._workloads(), value=asked.workload),
            **{name: widgets.IntText() for name in NUMBERS},
            "threads": widgets.Dropdown(options=[(text("option.auto"), AUTO)]),
        }
        self.axes: dict[str, Any] = {
            axis: widgets.Dropdown(options=[("–", "1")]) for axis in form.axes()
        }
        self.options: dict[str, Any] = {
            "accumulate": widgets.Text(),
            **{
                name: widgets.Dropdown(options=values) if values else widgets.Text()
                for name, values in OPTIONS.items()
            },
        }
        self.notes = {name: widgets.HTML() for name in (*FIELDS, "strategy", "accumulate")}
        self._impossible = widgets.HTML()
        self._add = widgets.Button(icon="plus")
        self._chips = Chips()
        self._groups = {group: widgets.HTML() for group in ("run", *STRATEGIES)}
        self._places: dict[str, Any] = {**self.options}
        self._more = Fold(self._option_boxes(), "wb-more")
        self._axes_title = widgets.HTML()
        self._seen: Request | None = None
        self._taken_back: TakenBack | None = None
        self.fill(asked)
        self.root = self._layout()
        self.limit(limits)
        self._add.on_click(lambda _button: self._set_also((*self._also, self.request().strategy)))

    def request(self) -> Request:
        """Return what the controls ask for now."""
        at = {name: field.value for name, field in self.fields.items()}
        chosen = {name: str(field.value).strip() for name, field in self.options.items()}
        accumulate = chosen.pop("accumulate")
        return Request(
            **at
            | {
                "seed": None if at["seed"] == self._default_seed else at["seed"],
                "threads": None if at["threads"] == AUTO else at["threads"],
            },
            axes=tuple(
                (axis, field.value) for axis, field in self.axes.items() if field.value != "1"
            ),
            accumulate=_whole(accumulate),
            options=tuple(
                (name, value) for name, value in chosen.items() if value != _default(name)
            ),
            also=self._also,
        )

    def fill(self, asked: Request) -> None:
        """Show what is asked for."""
        self._fill_threads(asked.threads)
        for name in ("workload", "batch", "steps", "repeats", "workers"):
            put(self.fields[name], getattr(asked, name))
        put(self.fields["seed"], self._default_seed if asked.seed is None else asked.seed)
        for axis in self.axes:
            self._fill_axis(axis, dict(asked.axes).get(axis, "1"), asked, {})
        given = dict(asked.options)
        accumulate = "" if asked.accumulate is None else str(asked.accumulate)
        for name, field in self.options.items():
            put(field, accumulate if name == "accumulate" else given.get(name, _default(name)))
        self._set_also(asked.also)
        self._seen = self._taken_back = (
            None  # what is handed over stays, and is told if it cannot be
        )

    def limit(self, limits: Mapping[str, Sequence[str]]) -> None:
        """Take the controls that are ``"hidden"`` out of sight, and lock those ``"locked"``."""
        self.limits = limits
        hidden, locked = self._hidden, limits.get("locked", ())
        for name, place in self._places.items():
            put(place.layout, "none" if name in hidden else "", "display")
        for group, title in self._groups.items():
            seen = not hidden.issuperset(_options_of(group))
            put(title.layout, "" if seen else "none", "display")
        for name, field in self.fields.items():
            put(field, name in locked, "disabled")
        for field in self.axes.values():
            put(field, "strategy" in locked, "disabled")
        put(self._add, "compare" in locked, "disabled")

    def suggest(self, described: Described, keep: set[str]) -> None:
        """Tell about the chosen workload, and set batch, steps and seed to what suits it.

        Controls named in ``keep`` stay as they are.
        """
        if described is self._described:
            return
        self._described, self._default_seed = described, described.seed
        for name in ("batch", "steps", "seed"):
            if name not in keep:
                put(self.fields[name], getattr(described, name))

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        for name, field in self.fields.items():
            field.description = text(f"control.{name}")
        for axis, field in self.axes.items():
            field.description = axis
            field.tooltip = translate(STRATEGIES[axis].title)
        for name, field in self.options.items():
            key = f"option.{name}"
            field.description = text(key) if known(key) else name.replace("_", " ")
            if isinstance(field, widgets.Text):
                field.placeholder = text("option.auto")
            elif (offered := _offered(OPTIONS[name])) != field.options:
                chosen = field.value
                field.options = offered
                field.value = chosen
        self._axes_title.value = f'<div class="wb-label">{escape(text("control.axes"))}</div>'
        self._add.description = text("compare.add")
        self._more.say(text("option.title"))
        workload = self.fields["workload"].value
        self.fields["workload"].options = self._workloads()
        self.fields["workload"].value = workload
        self._fill_threads(self.fields["threads"].value)
        self._show_chips()

    def show(
        self,
        problems: Mapping[str, str],
        refused: Refused,
        planned: str,
    ) -> None:
        """Show beside each control what is wrong with it, or else what is worth knowing.

        Parameters
        ----------
        problems:
            Sentences by control.
        refused:
            See :class:`workbench.ui.driver.Driver`.
        planned:
            Why the chosen strategy cannot be; "" if it can, or it is not known yet.
        """
        asked = self._take_back(refused)
        live = form.check(asked)
        if planned and "strategy" not in live:
            live["strategy"] = translate(planned)
        if self._taken_back is not None and "strategy" not in live:
            live["strategy"] = self._taken_back.sentence
        notes = form.hints(asked, self._cores)
        if self._described is not None and self._described.name == asked.workload:
            notes["workload"] = _about(self._described)
        wrong = {**live, **problems}
        # What is wrong with a control out of sight is told where one looks.
        out_of_sight = [said for name, said in wrong.items() if name in self._hidden]
        wrong["accumulate"] = " ".join([wrong.get("accumulate", ""), *out_of_sight]).strip()
        for name, place in self.notes.items():
            said = wrong.get(name)
            put(place, problem(said) if said else hint(notes.get(name, "")))
        self._show_chips()
        self._show_possible(asked, refused)
        self._show_groups(asked)

    def _take_back(self, refused: Refused) -> Request:
        """Return what the controls ask for, after a degree that cannot be was put back."""
        asked = self.request()
        if self._seen is not None and (back := taken_back(self._seen, asked, refused)):
            self._taken_back = back
            put(self.axes[back.axis], dict(back.left.axes).get(back.axis, "1"))
            asked = self.request()
        elif self._taken_back is not None and asked != self._taken_back.left:
            self._taken_back = None
        self._seen = asked
        return asked

    def _show_possible(self, asked: Request, refused: Refused) -> None:
        """Mark the degrees that cannot be, and say why below the axes."""
        marked = marks(asked, refused)
        for axis, field in self.axes.items():
            self._fill_axis(axis, field.value, asked, marked.get(axis, {}))
        put(self._impossible, reasons(marked))

    def _show_groups(self, asked: Request) -> None:
        """Enable the options of the axes that are in use; say of the others when they are."""
        used = {axis for strategy in asked.strategies for axis, _ in parse(strategy).axes}
        locked = self.limits.get("locked", ())
        for name, field in self.options.items():
            on = not (axes := users(name)) or not used.isdisjoint(axes)
            put(field, not on or name in locked, "disabled")
        for group, place in self._groups.items():
            on = group == "run" or group in used
            title = text("option.run") if group == "run" else translate(STRATEGIES[group].title)
            note = "" if on else f" — {text('option.unused', axis=group)}"
            put(place, f'<div class="wb-label">{escape(title)}<i>{escape(note)}</i></div>')

    def _fill_axis(
        self, axis: str, degree: str, asked: Request, refused: Mapping[str, str]
    ) -> None:
        workers = asked.workers if isinstance(asked.workers, int) else 1
        degrees = form.degrees(axis, workers)
        if degree not in degrees:
            degrees.append(degree)
        shown = tuple(
            ("–" if each == "1" else f"{each} {CROSS}" if each in refused else each, each)
            for each in degrees
        )
        field = self.axes[axis]
        if field.options != shown:
            with field.hold_sync():
                field.options = shown
                field.value = degree
        else:
            put(field, degree)

    def _fill_threads(self, threads: int | None) -> None:
        field, auto = self.fields["threads"], text("option.auto")
        numbers = sorted({*range(1, self._cores + 1), *([threads] if threads else ())})
        with field.hold_sync():
            field.options = ((auto, AUTO), *((str(n), n) for n in numbers))
            field.value = threads or AUTO

    def _set_also(self, also: Sequence[str]) -> None:
        self._also = tuple(name for name in dict.fromkeys(also) if name != "serial")

    def _show_chips(self) -> None:
        """Show the strategies that are compared too, each as a button that takes it out."""
        self._chips.show(
            text("compare.also" if self._also else "compare.alone"),
            {
                name: (name, text("compare.remove", name=name), self._take_out)
                for name in self._also
            },
            locked="compare" in self.limits.get("locked", ()),
        )

    def _take_out(self, name: str) -> None:
        self._set_also([each for each in self._also if each != name])

    @property
    def _hidden(self) -> frozenset[str]:
        return frozenset(self.limits.get("hidden", ()))

    def _workloads(self) -> list[tuple[str, str]]:
        own = []
        if self._own_name is not None:
            own = [(text("workload.yours", name=self._own_name), OWN)]
        return [*own, *((f"{e.name}: {translate(e.title)}", e.name) for e in CATALOGUE.values())]

    def _option_boxes(self) -> Any:
        return box(
            [
                box([title, box([self.options[name] for name in names], "wb-options")])
                for group, title in self._groups.items()
                if (names := _options_of(group))
            ]
        )

    def _layout(self) -> Any:
        for name, field in self.fields.items():
            self._places[name] = box([field, self.notes[name]], "wb-field", f"wb-{name}")
        for axis, field in self.axes.items():
            field.add_class(f"wb-axis-{axis}")
        self._places["compare"] = box([self._add, self._chips.root], "wb-compare")
        self._places["strategy"] = box(
            [
                self._axes_title,
                box(list(self.axes.values()), "wb-axes"),
                self.notes["strategy"],
                self._impossible,
                self._places["compare"],
            ],
            "wb-strategy",
        )
        first = ("workload", "batch", "steps", "repeats", "seed")
        return box(
            [
                box([self._places[name] for name in first], "wb-fields"),
                box(
                    [self._places[name] for name in ("workers", "threads", "strategy")],
                    "wb-fields",
                    "wb-cut",
                ),
                self._more.root,
                self.notes["accumulate"],  # what is wrong must not be folded away
            ],
            "wb-controls",
        )


def _about(described: Described) -> str:
    about = translate(described.about) if described.about else text("workload.own")
    samples = texts.count(described.samples, "sample")
    return text("workload.about", about=about, samples=samples, shape=described.shape)


def _options_of(group: str) -> list[str]:
    """Return the options of an axis, or those of every run."""
    if group in STRATEGIES:
        return list(STRATEGIES[group].options)
    of_axes = {name for strategy in STRATEGIES.values() for name in strategy.options}
    return ["accumulate", *(name for name in OPTIONS if name not in of_axes)]


def _default(name: str) -> str:
    values = OPTIONS[name]
    return values[0] if values else ""


def _offered(values: Sequence[str]) -> tuple[Any, ...]:
    """Return the values of an option with the word for each, where it is not the value itself."""
    words = [text(f"choice.{value}") if known(f"choice.{value}") else value for value in values]
    return tuple(values) if words == list(values) else tuple(zip(words, values, strict=True))


def _whole(typed: str) -> Any:
    """Return a typed number, None for nothing; what is no number stays, and is refused as such."""
    if not typed:
        return None
    try:
        return int(typed)
    except ValueError:  # a word, "--5", or more digits than Python reads
        return typed
