"""What a plan predicts in bytes, as small tables: memory by rank, what travels by collective."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from workbench.plan import Plan, in_binary_units
from workbench.ui import table
from workbench.ui.collective_names import operation, whole_name
from workbench.ui.language import text
from workbench.ui.linking import marks

PARTS = ("parameters", "gradients", "optimizer", "activations", "total")
MOST_RANKS = 16
"""Ranks that are listed; of more, the first."""


def traffic(plan: Plan) -> str:
    """Return both tables as HTML."""
    return _memory(plan) + _sent(plan)


def _memory(plan: Plan) -> str:
    rows = []
    for rank in range(min(plan.ranks, MOST_RANKS)):
        memory = plan.memory(rank)
        sizes = (getattr(memory, f"{part}_bytes") for part in PARTS)
        rows.append([str(rank), *map(in_binary_units, sizes)])
    heads = [text("traffic.rank"), *(text(f"traffic.{part}") for part in PARTS)]
    ranks = [marks([rank], stop=True) for rank in range(len(rows))]
    return _table(text("traffic.memory"), heads, rows, ranks)


def _sent(plan: Plan) -> str:
    title = text("traffic.sent")
    busiest = max(range(plan.ranks), key=plan.sent_bytes)
    sums: dict[tuple[str, str], int] = {}
    names: dict[tuple[str, str], str] = {}
    for collective in plan.collectives:
        if collective.phase != "start":
            key = (collective.operation, " + ".join(collective.axes))
            sent = plan.sent_by(collective, busiest)
            if collective.phase == "average":  # once in a period of steps
                sent = -(-sent // plan.period)
            sums[key] = sums.get(key, 0) + sent
            names.setdefault(key, collective.name)
    if not sums:
        return f"<h4>{escape(title)}</h4><p>{escape(text('traffic.nothing'))}</p>"
    rows = [
        [operation(way), axes, whole_name(names[way, axes]), in_binary_units(nbytes)]
        for (way, axes), nbytes in sorted(sums.items(), key=lambda each: -each[1])
    ]
    heads = [text(f"traffic.{name}") for name in ("collective", "axis", "what", "bytes")]
    return _table(title, heads, rows)


def _table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], of: Sequence[str] = ()
) -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join(
        f"<tr{marked}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row, marked in zip(rows, of or [""] * len(rows), strict=True)
    )
    return (
        f'<h4>{escape(title)}</h4>{table.SCROLL}<table class="wb-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
