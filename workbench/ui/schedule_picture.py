"""The picture of a pipeline's schedule: what each rank does when, from the schedule's own lists."""

from __future__ import annotations

from html import escape

from workbench.plan import Plan
from workbench.schedules import SCHEDULES, Action, Timeline, bubble, timeline
from workbench.strategies.pipeline import AXIS
from workbench.ui import drawing
from workbench.ui.canvas import width_of
from workbench.ui.language import text

LETTERS = {"forward": "F", "backward": "B", "input": "I", "weight": "W"}
"""How an action is written, before the number of its micro-batch."""

_FILLS = {"forward": "#9CCBEA", "backward": "#86D3B9", "input": "#86D3B9", "weight": "#E8C478"}
_INK = "#111"  # on all of these, whatever the theme
_LEFT, _ROW, _SIZE = 96, 34, 13


def schedule_picture(plan: Plan) -> str:
    """Return as HTML who works on which micro-batch when, or "" if the plan is no pipeline.

    Stages take as long as was counted, or measured where the plan did that, a third each for the
    forward pass and the halves of the backward pass; messages take no time.
    """
    if not plan.stages:
        return ""
    ranks, micros = plan.mesh.degree(AXIS), plan.batch.accumulate
    schedule = SCHEDULES[plan.option("schedule", "1f1b")]
    actions = schedule.actions(ranks, len(plan.stages) // ranks, micros)
    costs = [float(stage.cost_s or stage.cost_flops or 1) for stage in plan.stages]
    times = timeline(actions, costs, costs, costs)
    title = text("schedule.title", schedule=schedule.title, micro=micros)
    waits = text("schedule.waits", share=f"{100 * bubble(times):.0f}")
    kinds = [kind for kind in LETTERS if any(a.kind == kind for own in actions for a in own)]
    told = [
        f"{_who(plan, place)}: {_list(own, schedule.chunked)}" for place, own in enumerate(actions)
    ]
    foot = 70 + _ROW * ranks
    body = (
        _legend(kinds)
        + _rows(plan, times, schedule.chunked)
        + drawing.text(text("schedule.time"), _LEFT, foot + 16)
        + drawing.text(waits, 12, foot + 42)
    )
    picture = drawing.svg(foot + 54, title, body, said="\n".join([waits, *told]))
    lines = escape("\n".join(told))
    return (
        f"{picture}<details><summary>{escape(text('schedule.lists'))}</summary>"
        f'<pre tabindex="0">{lines}</pre></details>'
    )


def _who(plan: Plan, place: int) -> str:
    """Return the ranks that have the same place along the pipeline."""
    found = [rank for rank in range(plan.ranks) if plan.mesh.place(rank, AXIS) == place]
    if len(found) == 1:
        return text("timeline.rank", rank=found[0])
    return text("cut.some_ranks", ranks=", ".join(map(str, found)))


def _list(own: tuple[Action, ...], chunked: bool) -> str:
    return " ".join(_name(action, chunked) for action in own)


def _name(action: Action, chunked: bool) -> str:
    stage = f"{action.stage}." if chunked else ""
    return f"{LETTERS[action.kind]}{stage}{action.micro}"


def _legend(kinds: list[str]) -> str:
    x, found = 12.0, ""
    for kind in kinds:
        name = text(f"schedule.{kind}")
        said = f"{LETTERS[kind]}: {name}"
        found += drawing.rect(x, 38, 14, 14, _FILLS[kind], stroke=_INK, line_width=0.5)
        found += drawing.text(said, x + 20, 51)
        x += 20 + width_of(said, drawing.TEXT) + 24
    return found


def _rows(plan: Plan, times: Timeline, chunked: bool) -> str:
    most = max(stop for own in times for _, stop, _ in own)
    scale = (drawing.WIDTH - _LEFT - 8) / most
    found = ""
    for place, own in enumerate(times):
        top = 62 + _ROW * place
        found += drawing.text(_who(plan, place), 12, top + 20)
        for start, stop, action in own:
            x, width = _LEFT + start * scale, (stop - start) * scale
            name = _name(action, chunked)
            found += f"<g><title>{escape(name)}</title>"
            found += drawing.rect(
                x, top, width, _ROW - 6, _FILLS[action.kind], stroke=_INK, line_width=0.5
            )
            fits = [each for each in (name, name[1:]) if width_of(each, _SIZE) + 4 <= width]
            if fits:
                found += (
                    f'<text x="{x + width / 2:.1f}" y="{top + 19}" font-size="{_SIZE}" '
                    f'fill="{_INK}" text-anchor="middle">{fits[0]}</text>'
                )
            found += "</g>"
    return found
