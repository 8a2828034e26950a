"""What the panel says of a state, as HTML; everything from outside is escaped."""

from __future__ import annotations

from html import escape

from workbench import machine
from workbench.cost import HOUR_S
from workbench.ui import table, texts
from workbench.ui.costs import costs
from workbench.ui.form import Request
from workbench.ui.language import current, text, translate
from workbench.ui.pace import FREE, pace_of
from workbench.ui.state import State
from workbench.ui.texts import Row
from workbench.ui.widget import copied, hint, problem


def place(state: State) -> str:
    """Return where it runs, and a link to the page of the dashboard in the language spoken here."""
    said = f"<span>{escape(state.place)}</span>"
    if not state.dashboard:
        return said
    address = escape(f"{state.dashboard}?lang={current()}")
    named = escape(text("place.dashboard"))
    return f'{said} · <a href="{address}" target="_blank" rel="noopener">{named}</a>'


def paced(state: State) -> str:
    """Say why figures move seldom, where they do."""
    pace = pace_of(state)
    if pace is FREE:
        return ""
    cores = texts.count(machine.cores(), "core")
    return hint(text("hint.pace", cores=cores, seconds=f"{pace.moving_s:.0f}"))


def trouble(state: State) -> str:
    """Return what has gone wrong, and what to do about it."""
    said = state.problems.get("run")
    broken = problem(said, state.details) if said else ""
    # What to do now stands beside its button, also after a run that had said otherwise.
    return broken + (problem(text("cluster.gone")) if state.gone else "")


def result(state: State) -> str:
    """Return the badge, and one sentence per strategy."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in state.found)
    if not state.bars:
        return lines
    kind, sentence = texts.badge(state.bars)
    if kind == "none" and state.request is not None and len(state.request.strategies) > 1:
        return ""  # the strategy's turn has not come
    mark = {"yes": "✓ ", "no": "✗ ", "unknown": "… "}.get(kind, "")
    return f'<div class="wb-badge wb-badge-{kind}">{mark}{escape(sentence)}</div>{lines}'


def runs(state: State) -> str:
    """Return the table of what was measured."""
    if not state.rows:
        return hint(text("table.empty"))
    title = escape(text("table.title"))
    return f"<h3>{title}</h3>{table.rows_table(state.rows)}"


def details(state: State, price: float) -> str:
    """Return what is folded away of the rows; ``price`` is that of a worker for an hour."""
    if not state.rows:
        return hint(text("table.empty"))
    rows = [{**row, **_priced(row, price)} for row in state.rows]
    return table.details_table(rows) + costs(rows) + _refused(state)


def _priced(row: Row, price: float) -> dict[str, float]:
    if not price or row.get("epoch_s") is None:
        return {}
    return {"price_per_epoch": price * row["ranks"] * row["epoch_s"] / HOUR_S}


def python(asked: Request) -> str:
    """Return what each button that measures or trains does, as Python to copy."""
    return "".join(
        copied(text(f"python.{kind}"), asked.python(kind)) for kind in ("compare", "sweep", "train")
    )


def _refused(state: State) -> str:
    if not state.refused:
        return ""
    lines = "".join(
        f"<li><b>{escape(name)}</b>: {escape(translate(why))}</li>" for name, why in state.refused
    )
    return f"<h4>{escape(text('sweep.refused'))}</h4><ul>{lines}</ul>"
