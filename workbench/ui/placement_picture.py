"""Chunks by worker, and those that move when workers come or go."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.distribution import Distribution, Move
from workbench.ui.drawing import RANKS, WIDTH, Picture, rect, svg, text, texts, words

LEFT, ROW, BAR = 120, 34, 22
MOST_CELLS = 3000
"""Chunks that are drawn one by one; of more, a bar per worker shows the bytes."""


def placement_picture(table: Distribution, after: Distribution | None = None) -> Picture:
    """Draw the chunks of every worker as cells, as wide as their bytes.

    With ``after``, that is what is drawn, and what has moved from ``table`` is hatched in the
    colour of the worker that it had.
    """
    shown = table if after is None else after
    colors = {
        name: RANKS[n % len(RANKS)]
        for n, name in enumerate(dict.fromkeys([*table.workers, *shown.workers]))
    }
    move = None if after is None else table.moved(after)
    held, whole = shown.bytes, sum(shown.sizes) or 1
    means = {
        name: whole * part / sum(shown.capacities.values())
        for name, part in shown.capacities.items()
    }
    scale = (WIDTH - LEFT - 20) / max(1.0, *held.values(), *(1.1 * m for m in means.values()))
    cells = _cells(shown, move, colors, one_by_one=len(shown.keys) <= MOST_CELLS)
    body, y = [], 44
    for name in shown.workers:
        body.append(text(f"worker {name}"[:14], 12, y + 17))
        x = float(LEFT)
        for size, fill, stroke in cells[name]:
            body.append(rect(x, y, size * scale, BAR, fill, stroke=stroke, line_width=0.5))
            x += size * scale
        mean = LEFT + means[name] * scale
        body.append(rect(mean, y - 4, 0.1, BAR + 8, "none", stroke="currentColor", dash="3 2"))
        y += ROW
    title = (
        f"{len(shown.keys):,} chunks on {len(shown.workers)} workers by {shown.scheme}: "
        f"max/mean {shown.balance:.2f}"
    )
    lines = ["Dashed: the mean of each worker, by its capacity."]
    if move is not None:
        lines += [str(move), "Hatched: moved, in the colour of the worker that had it."]
    body.append(texts(lines, y + 14))
    said = [*str(shown).splitlines()[1:], *lines[1:]]
    return Picture(svg(y + 22 * len(lines) + 8, title, "".join(body)), words(title, said))


def _cells(
    shown: Distribution, move: Move | None, colors: Mapping[str, str], *, one_by_one: bool
) -> dict[str, list[tuple[float, str, str]]]:
    """Return width in bytes, fill and outline of the cells of each worker, moved ones last."""
    numbers = {name: RANKS.index(color) for name, color in colors.items()}
    cells: dict[str, dict[str, list[float]]] = {name: {} for name in shown.workers}
    for key, size, owner in zip(shown.keys, shown.sizes, shown.owners.tolist(), strict=True):
        name = shown.workers[owner]
        source = move.keys[key][0] if move is not None and key in move.keys else name
        fill = colors[name] if source == name else f"url(#wb-hatch-{numbers[source]})"
        cells[name].setdefault(fill, []).append(float(size))
    result: dict[str, list[tuple[float, str, str]]] = {}
    for name, by_fill in cells.items():
        ordered = sorted(by_fill.items(), key=lambda item: item[0].startswith("url"))
        result[name] = [
            (size, fill, "#fff" if one_by_one else fill)
            for fill, sizes in ordered
            for size in (sizes if one_by_one else [sum(sizes)])
        ]
    return result
