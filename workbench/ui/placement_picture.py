"""Chunks by worker, and those that move when workers come or go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from workbench.distribution import Distribution, Move
from workbench.plan import in_binary_units
from workbench.ui.drawing import HATCH, RANKS, WIDTH, Picture, rect, svg, text, texts, words
from workbench.ui.language import text as words_of
from workbench.ui.language import translate
from workbench.ui.texts import count

LEFT, RIGHT, ROW, BAR = 112, 256, 42, 24
MOST_CELLS = 3000
"""Chunks that are drawn one by one; of more, a bar per worker shows the bytes."""

MOST_NAMES = 14
"""Letters of a worker's name that there is room for."""


@dataclass(frozen=True)
class _Cell:
    """One chunk, or all of a kind together; ``said`` is what a pointer on it is told."""

    size: float
    fill: str
    stroke: str
    said: str


def placement_picture(table: Distribution, after: Distribution | None = None) -> Picture:
    """Draw the chunks of every worker as cells, as wide as their bytes.

    With ``after``, that is what is drawn, and what has moved from ``table`` is hatched in the
    colour of the worker that it had; beside each worker stands how many came from where.
    """
    shown = table if after is None else after
    colors = _colors([*table.workers, *shown.workers])
    move = None if after is None else table.moved(after)
    held, chunks, whole = shown.bytes, shown.chunks, sum(shown.sizes) or 1
    means = {
        name: whole * part / sum(shown.capacities.values())
        for name, part in shown.capacities.items()
    }
    came = {name: _arrivals(name, move) for name in shown.workers}
    scale = (WIDTH - LEFT - RIGHT) / max(1.0, *held.values(), *(1.1 * m for m in means.values()))
    cells = _cells(shown, move, colors, one_by_one=len(shown.keys) <= MOST_CELLS)
    body, y = [], 44
    for name in shown.workers:
        body.append(rect(12, y, 10, BAR, RANKS[colors[name]], stroke=None))
        body.append(text(_titled(name), 28, y + 17))
        x = float(LEFT)
        for cell in cells[name]:
            body.append(_drawn(cell, x, y, cell.size * scale, one_by_one=cell.said != ""))
            x += cell.size * scale
        mean = LEFT + means[name] * scale
        body.append(rect(mean, y - 4, 0.1, BAR + 8, "none", stroke="currentColor", dash="3 2"))
        held_here = in_binary_units(held[name]) if whole != len(shown.keys) else ""  # keys alone
        numbers = words_of(
            f"where.holds{'' if held_here else '.keys'}",
            chunks=count(chunks[name], "chunk"),
            bytes=held_here,
            mean=f"{held[name] / (means[name] or 1):.2f}",
        )
        beside = WIDTH - RIGHT + 10
        body.append(text(numbers, beside, y + (17 if not came[name] else 9), size=13))
        if came[name]:
            body.append(text(came[name], beside, y + 25, size=13))
        y += ROW
    title = words_of(
        "where.picture",
        chunks=count(len(shown.keys), "chunk"),
        workers=count(len(shown.workers), "worker"),
        scheme=shown.scheme,
        balance=f"{shown.balance:.2f}",
    )
    lines = [words_of("where.dashed")]
    if move is not None:
        lines += [translate(str(move)), words_of("where.hatched")]
    body.append(texts(lines, y + 14))
    arrived = [f"{_titled(name)}: {came[name]}" for name in came if came[name]]
    said = [*str(shown).splitlines()[1:], *lines[1:], *arrived]
    return Picture(svg(y + 22 * len(lines) + 8, title, "".join(body)), words(title, said))


def _colors(names: list[str]) -> dict[str, int]:
    """Return the number of each worker's colour; the same when others have come or gone."""
    once = dict.fromkeys(names)
    if all(name.isdigit() for name in once):
        return {name: int(name) % len(RANKS) for name in once}
    return {name: n % len(RANKS) for n, name in enumerate(once)}


def _titled(name: str) -> str:
    if name.isdigit():
        return words_of("where.worker", worker=name)
    return _short(name)


def _short(name: str) -> str:
    return name if len(name) <= MOST_NAMES - 3 else f"…{name[4 - MOST_NAMES :]}"


def _arrivals(name: str, move: Move | None) -> str:
    """Return how many chunks came to a worker from which others."""
    came = Counter(source for source, to in (move.keys.values() if move else ()) if to == name)
    most = came.most_common(2)
    parts = [words_of("where.came", chunks=f"{n:,}", worker=_short(name)) for name, n in most]
    if rest := came.total() - sum(n for _, n in most):
        parts.append(words_of("where.came.others", chunks=f"{rest:,}"))
    return f"+ {', '.join(parts)}" if parts else ""


def _drawn(cell: _Cell, x: float, y: float, width: float, *, one_by_one: bool) -> str:
    box = rect(
        x, y, width, BAR, cell.fill, stroke=cell.stroke if one_by_one else None, line_width=0.5
    )
    return f"<g><title>{escape(cell.said)}</title>{box}</g>" if one_by_one else box


def _cells(
    shown: Distribution, move: Move | None, colors: Mapping[str, int], *, one_by_one: bool
) -> dict[str, list[_Cell]]:
    """Return the cells of each worker, moved ones last."""
    cells: dict[str, list[_Cell]] = {name: [] for name in shown.workers}
    for key, size, owner in zip(shown.keys, shown.sizes, shown.owners.tolist(), strict=True):
        name = shown.workers[owner]
        source = move.keys[key][0] if move is not None and key in move.keys else name
        number = colors[source]
        fill = RANKS[number] if source == name else f"url(#{HATCH}{number})"
        stroke = "#fff" if source == name else RANKS[number]
        said = f"{key}: {in_binary_units(size)}"
        if source != name:
            said = words_of("where.cell", chunk=said, worker=_titled(source))
        cells[name].append(_Cell(float(size), fill, stroke, said))
    for name, mine in cells.items():
        mine.sort(key=lambda cell: (cell.fill.startswith("url"), cell.fill))
        if not one_by_one:
            sums: dict[str, float] = {}
            for cell in mine:
                sums[cell.fill] = sums.get(cell.fill, 0.0) + cell.size
            cells[name] = [_Cell(size, fill, "", "") for fill, size in sums.items()]
    return cells
