"""Runs and comparisons as a cell of a notebook shows them: how far they are, and what came out."""

from __future__ import annotations

from html import escape
from typing import Any

from workbench.attached_run import OVER
from workbench.compared import Compared
from workbench.measured import Measured
from workbench.ui import table, texts
from workbench.ui.language import text, translate
from workbench.ui.still_page import still_page
from workbench.ui.widget import problem


def result_html(result: Measured | Compared) -> str:
    """Return a result as HTML without JavaScript, in the language of this thread.

    Parameters
    ----------
    result:
        A run or a comparison, going on or ended, of this process or read from its folder. One that
        goes on is shown as it is now.
    """
    return _comparison(result) if isinstance(result, Compared) else _run(result)


def _comparison(result: Compared) -> str:
    progress, rows = result.progress, result.rows
    said = _said(result, result.facts.name, progress.done_steps, progress.total_steps)
    same = texts.badge(rows)[1] if rows else ""
    page = still_page([*said, same], rows, result if rows else None, ["speedup"])
    if rows:
        more = escape(text("table.details"))
        page += f"<details><summary>{more}</summary>{table.details_table(rows)}</details>"
    return page + _broken(result)


def _run(run: Any) -> str:
    history = run.history
    accuracy = getattr(run, "accuracy", None)
    cells = {
        text("table.strategy"): f"{translate(run.label)}, {texts.count(run.plan.ranks, 'rank')}",
        text("result.steps"): f"{run.step:,} / {run.steps:,}",
        text("result.step"): "–" if run.step_s is None else texts.milliseconds(run.step_s),
        text("table.loss"): f"{history[-1]['loss']:.4g}" if history else "–",
        text("table.accuracy"): "–" if accuracy is None else f"{accuracy:.1%}",
    }
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in cells)
    body = "".join(f"<td>{escape(cell)}</td>" for cell in cells.values())
    return (
        still_page(_said(run, run.work.name, run.step, run.steps), (), None)
        + f"<style>{table.STYLE}</style>"
        + f'{table.SCROLL}<table class="wb-table"><thead><tr>{head}</tr></thead>'
        + f"<tbody><tr>{body}</tr></tbody></table></div>"
        + _broken(run)
    )


def _said(result: Any, name: str, done: int, total: int) -> list[str]:
    """Return how far a result is, in sentences."""
    status = text(f"result.status.{result.status}")
    steps = texts.count(total, "step")
    said = [text("result.title", name=name, status=status, done=f"{done:,}", steps=steps)]
    if result.status not in OVER:
        said.append(text("result.later"))
    if result.folder is not None:
        said.append(text("result.folder", folder=result.folder))
    return said


def _broken(result: Any) -> str:
    return "" if result.error is None else problem(translate(str(result.error)))
