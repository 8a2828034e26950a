"""The page of placement: chunks by worker, and what moves by each scheme when workers change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.cluster.lab import current_lab
from workbench.errors import PlanError, RunError
from workbench.hashing import SCHEMES
from workbench.plan import Plan, in_binary_units
from workbench.ui.language import current, speaking, text, translate
from workbench.ui.placement_picture import placement_picture
from workbench.ui.placement_state import CHUNKS, KINDS, MOST_CHUNKS, Schemes, chunks_of
from workbench.ui.placement_table import STYLE, schemes_table
from workbench.ui.texts import count
from workbench.workload import Workload

WORKERS = 4
"""Workers to begin with where no lab is open."""


def where(what: Any, workers: Any = None) -> PlacementPage:
    """Open the page of placement: where chunks live by each scheme, and what moves.

    It shows itself at the end of a notebook's cell. Add a worker, take one away, or change how much
    one counts, and see how even each scheme is and how much it moves. That is arithmetic: no chunk
    is touched, and no cluster is needed.

    Parameters
    ----------
    what:
        A workload, of which samples, parameters and inputs of operators can be looked at; or
        chunks as for :func:`workbench.placement`.
    workers:
        Their number, their names, or how much each counts by name. Those of the open lab, by their
        memory in GiB, if left out; four where none is open.

    Raises
    ------
    PlanError
        If there is nothing to place, or no worker.
    """
    if isinstance(what, Workload):
        from workbench.planning import plan

        page = PlacementPage(workers=workers)
        page.show(plan(what))
        return page
    return PlacementPage(what, workers=workers)


class PlacementPage:
    """Widgets that show :class:`~workbench.ui.placement_state.Schemes`; made by :func:`where`.

    Every method may be called from any thread.

    Parameters
    ----------
    chunks:
        What to place, as :func:`workbench.placement` takes it. If left out, nothing is shown before
        :meth:`show` has been given a plan.
    workers:
        As for :func:`where`.
    ask:
        Returns the memory in GiB of each worker of the open lab, which are there if no others are
        given; by default the lab is asked, which takes long where it does not answer.
    """

    def __init__(
        self,
        chunks: Any = None,
        workers: Any = None,
        ask: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._workers = workers
        self._ask = ask or workers_of_lab
        self._there: Mapping[str, float] = {}
        self._chunks = chunks
        self._plan: Plan | None = None
        self._schemes: Schemes | None = None
        self._said: Callable[[], str] = str
        self._language = current()
        self._rows: dict[str, Any] = {}
        self._setting = False  # what changes in the controls is ours, and no wish
        self._kind = widgets.Dropdown(options=list(KINDS))
        self._count = widgets.BoundedIntText(value=CHUNKS, min=1, max=MOST_CHUNKS)
        self._scheme = widgets.Dropdown(options=list(SCHEMES))
        self._join = _button("plus", self.join)
        self._again = _button("undo", self.start_again)
        self._list = widgets.Box([])
        self._message = widgets.HTML()
        self._picture = widgets.HTML()
        self._table = widgets.HTML()
        self._message.add_class("wb-said")
        what = [] if chunks is not None else [self._kind, self._count]
        self._controls = widgets.Box([*what, self._scheme, self._join, self._again])
        for row in (self._controls, self._list):
            row.add_class("wb-where-row")
        self.root = widgets.VBox(
            [
                widgets.HTML(f"<style>{STYLE}</style>"),
                *(self._controls, self._list, self._message, self._picture, self._table),
            ]
        )
        self.root.add_class("wb-where")
        for control in (self._kind, self._count):
            control.observe(lambda _change: self._choose(), "value")
        self._scheme.observe(lambda _change: self._draw(), "value")
        self.speak()
        if chunks is not None:
            self._place()  # what is wrong is told to the caller

    @property
    def schemes(self) -> Schemes | None:
        """What is shown: the tables of every scheme, now and before the last change."""
        return self._schemes

    def speak(self) -> None:
        """Say everything in the language of this thread, from now on."""
        with self._lock, self._set():
            self._language = current()
            kind = self._kind.value
            self._kind.options = [(text(f"where.{each}"), each) for each in KINDS]
            self._kind.value = kind
            self._kind.description = text("where.kind")
            self._count.description = text("where.count")
            self._scheme.description = text("where.scheme")
            self._join.description = text("where.join")
            self._again.description = text("where.again")
            for name, row in self._rows.items():
                self._name(name, row)
        self._draw()

    def show(self, plan: Plan) -> None:
        """Show the chunks of the workload of a plan, whose strategy does not matter.

        Until somebody changes the workers, they are those of the lab that is open now.
        """
        with self._lock:
            there = self._ask() if self._workers is None else {}
            if plan is self._plan and there == self._there:
                return
            self._plan, self._there, schemes = plan, there, self._schemes
            if (
                schemes is None
                or schemes.chunks != self._chunks_of(plan)
                or (schemes.before is None and there and there != schemes.workers)
            ):
                self.start_again()

    def start_again(self) -> None:
        """Place all chunks anew, on the workers of the beginning."""
        with self._lock:
            if self._chunks is None and self._plan is None:
                return
            try:
                self._place()
            except PlanError as error:
                self._refuse(error)

    def _choose(self) -> None:
        with self._lock:
            if not self._setting:
                self.start_again()

    def join(self) -> None:
        """Have a worker join."""
        with self._lock:
            self._change(lambda schemes: schemes.join()[1], lambda: text("where.joins"))

    def leave(self, name: str) -> None:
        """Have a worker leave."""
        with self._lock:
            self._change(
                lambda schemes: schemes.leave(name), lambda: text("where.leaves", worker=name)
            )

    def weigh(self, name: str, capacity: float) -> None:
        """Have a worker count more or less, by its memory or speed in any unit."""
        with self._lock:
            self._change(
                lambda schemes: schemes.change({**schemes.workers, name: capacity}),
                lambda: text("where.weighs", worker=name, weight=f"{capacity:g}"),
            )

    def _place(self) -> None:
        chunks = self._chunks
        if chunks is None:
            assert self._plan is not None
            chunks = self._chunks_of(self._plan)
        workers = self._ask() or WORKERS if self._workers is None else self._workers
        self._schemes = Schemes.place(chunks, workers)
        placed = self._schemes.chunks
        size = in_binary_units(sum(placed.values()))
        self._said = lambda: text("where.begin", chunks=count(len(placed), "chunk"), bytes=size)
        self._draw()

    def _chunks_of(self, plan: Plan) -> dict[str, int]:
        return chunks_of(plan, self._kind.value, self._count.value)

    def _change(self, step: Callable[[Schemes], Schemes], said: Callable[[], str]) -> None:
        if self._schemes is None:
            return
        try:
            self._schemes = step(self._schemes)
        except PlanError as error:
            self._refuse(error)
            self._list_workers()  # a weight that cannot be is taken back
            return
        self._said = said
        self._draw()

    def _say(self, sentence: str) -> None:
        self._message.value = f'<span role="status">{escape(sentence)}</span>'

    def _refuse(self, error: PlanError) -> None:
        with speaking(self._language):
            self._say(translate(str(error)))

    @contextmanager
    def _set(self) -> Iterator[None]:
        """Change controls without that being taken for a wish."""
        self._setting = True
        try:
            yield
        finally:
            self._setting = False

    def _draw(self) -> None:
        with self._lock, speaking(self._language):
            schemes = self._schemes
            if schemes is None:
                self._say(text("where.nothing"))
                return
            chosen = str(self._scheme.value)
            after = schemes.tables[chosen]
            move = schemes.moved(chosen)
            before = after if schemes.before is None else schemes.before[chosen]
            drawn = placement_picture(before, None if schemes.before is None else after)
            said = self._said()
            self._say(said if move is None else f"{said}{translate(str(move))}")
            self._picture.value = drawn.svg
            self._table.value = schemes_table(schemes, chosen)
            self._list_workers()

    def _list_workers(self) -> None:
        """Show a weight and a button for each worker; those of workers that stay are kept."""
        assert self._schemes is not None
        workers = self._schemes.workers
        gone = [self._rows.pop(name) for name in [*self._rows] if name not in workers]
        for name in workers:
            if name not in self._rows:
                self._rows[name] = self._row(name)
        rows = [self._rows[name] for name in workers]
        if [*self._list.children] != rows:
            self._list.children = rows
        for name, capacity in workers.items():
            shown = self._rows[name].children[0]
            if shown.value != (rounded := round(capacity, 3)):
                with self._set():
                    shown.value = rounded
        for row in gone:
            _close(row)

    def _row(self, name: str) -> Any:
        weight = widgets.FloatText(step=0.5)

        def weighed(change: dict[str, Any]) -> None:
            with self._lock:
                if not self._setting:
                    self.weigh(name, change["new"])

        weight.observe(weighed, "value")
        row = widgets.Box([weight, _button("times", lambda: self.leave(name))])
        self._name(name, row)
        for css in ("wb-where-row", "wb-where-worker"):
            row.add_class(css)
        return row

    @staticmethod
    def _name(name: str, row: Any) -> None:
        weight, leave = row.children
        weight.description = text("where.weight", worker=name)
        leave.description = text("where.leave", worker=name)

    def close(self) -> None:
        """Take the widgets off the page."""
        _close(self.root)

    def __str__(self) -> str:
        """Return the picture and the table in words."""
        if self._schemes is None:
            return text("where.nothing")
        chosen = str(self._scheme.value)
        lines = [str(self._schemes.tables[chosen])]
        for scheme in SCHEMES:
            move = self._schemes.moved(scheme)
            said = f"; {move}" if move is not None else ""
            lines.append(f"{scheme}: max/mean {self._schemes.tables[scheme].balance:.2f}{said}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        """Return the widgets, and the picture and the table for where there are none."""
        bundle = dict(self.root._repr_mimebundle_() or {})
        bundle["text/plain"] = str(self)
        bundle["text/html"] = f"{self._picture.value}{self._table.value}"
        return bundle


def workers_of_lab() -> Mapping[str, float]:
    """Return the memory of each worker of the open lab in GiB; nothing if there is none."""
    try:
        hosts = current_lab().hosts
    except (PlanError, RunError):  # none is open, or it does not answer
        return {}
    return {host.name: host.memory_bytes / 2**30 for host in hosts}


def _button(icon: str, press: Callable[[], None]) -> Any:
    button = widgets.Button(icon=icon)
    button.on_click(lambda _button: press())
    return button


def _close(widget: Any) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()
