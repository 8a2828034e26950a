"""Arrays side by side, each cut into parts to scale: a part has its ranks' colours and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import product
from math import prod

from workbench.plan.parts import Part
from workbench.ui.canvas import width_of
from workbench.ui.drawing import RANKS, TEXT, WIDTH, rect, text, wrapped
from workbench.ui.language import text as words_of
from workbench.ui.layer_arrays import LayerArray
from workbench.ui.linking import marks
from workbench.windows import Run

SIDE, LEAST, MOST = 188, 108, 320
"""Pixels of an array: its longer side, its shorter one at least, and its height at most."""

ROW, STRIP = 28, 10
"""Pixels that a part needs for its numbers, and of the colours of several ranks above these."""

MOST_BOXES = 24
"""Pieces of parts that are drawn where they lie; of more, those of each part are drawn together."""

MOST_RUNS, MOST_RANKS = 64, 16
"""Runs of a part that are written beside it, and ranks whose colours are shown."""

SHARED = "rgba(140,140,140,0.28)"
"""Of what several ranks hold."""


def panels(arrays: Sequence[LayerArray], y: float) -> tuple[str, float]:
    """Return the arrays side by side, their headings at ``y``, and where they end."""
    body, ends = [], [y]
    step = (WIDTH - 24) / 4
    for place, array in enumerate(arrays):
        drawn, end = _panel(array, 12 + place * step, y, step - 18)
        body.append(drawn)
        ends.append(end)
    return "".join(body), max(ends)


def legend(ranks: int, y: float) -> str:
    """Return the colours of the first ranks, with their numbers."""
    said = words_of("cut.ranks")
    parts, x = [text(said, 12, y)], 12 + width_of(said, TEXT) + 12
    for rank in range(min(ranks, MOST_RANKS)):
        parts.append(rect(x, y - 12, 14, 14, RANKS[rank % len(RANKS)], stroke=None))
        parts.append(text(str(rank), x + 19, y))
        x += 30 + width_of(str(rank), TEXT)
    return "".join([*parts, text("…", x, y) if ranks > MOST_RANKS else ""])


def numbered(ranks: Iterable[int]) -> str:
    """Return numbers of ranks, three or more in a row as a range: ``"0, 2"``, ``"0–3, 8"``."""
    found: list[list[int]] = []
    for rank in sorted(ranks):
        if found and found[-1][-1] == rank - 1:
            found[-1].append(rank)
        else:
            found.append([rank])
    pieces = [
        f"{each[0]}–{each[-1]}" if len(each) > 2 else ", ".join(map(str, each)) for each in found
    ]
    return ", ".join(pieces)


def named(ranks: Sequence[int]) -> str:
    """Return ranks in words: ``"rank 1"``, ``"ranks 0, 2"``."""
    if len(ranks) == 1:
        return words_of("timeline.rank", rank=ranks[0])
    return words_of("cut.some_ranks", ranks=numbered(ranks))


def extent(runs: Sequence[Run]) -> str:
    """Return positions along a dim in words: ``"0–31"``; of many runs the first and their number.

    An empty range is "none".
    """
    own = [(start, stop) for start, stop in runs if start < stop]
    if not own:
        return words_of("picture.none")
    written = [f"{start}–{stop - 1}" if stop - start > 1 else str(start) for start, stop in own]
    if len(own) > 3:
        return words_of("cut.more_runs", first=", ".join(written[:2]), count=len(own))
    return ", ".join(written)


def heading(array: LayerArray) -> str:
    """Return what an array is, with the last part of its name."""
    name = array.name.rpartition(".")[2]
    return words_of(f"cut.{array.kind}", name=name)


def told(array: LayerArray, part: Part) -> str:
    """Return a part in words: which of each dim it has, and who holds it."""
    where = " × ".join(
        f"{words_of(f'cut.dim.{array.dims[d]}')} {extent(runs)}"
        for d, runs in enumerate(part.runs)
        if runs != ((0, array.shape[d]),)
    )
    return f"{heading(array)}: {where or words_of('cut.whole')}: {named(part.ranks)}"


def _panel(array: LayerArray, x: float, y: float, width: float) -> tuple[str, float]:
    body = [text(heading(array), x, y, bold=True)]
    body.append(text("×".join(map(str, array.shape)), x, y + 21))
    boxes, end, together = _placed(array, x, y + 33)
    body += [_part(array, part, of) for part, of in zip(array.parts, boxes, strict=True)]
    foot = end + 20
    lines = [_direction("↓", array, array.down), _direction("→", array, array.across)]
    lines += [words_of("cut.together")] if together else []
    for line in (piece for said in lines if said for piece in wrapped(said, width)):
        body.append(text(line, x, foot))
        foot += 20
    return "".join(body), foot


def _direction(arrow: str, array: LayerArray, dims: Sequence[int]) -> str:
    counted = [f"{words_of(f'cut.dim.{array.dims[d]}')} ({array.shape[d]})" for d in dims]
    return f"{arrow} {' × '.join(counted)}" if counted else ""


_Box = tuple[float, float, float, float]
"""Left, top, width and height, in pixels, or as parts of the sides of an array."""

_Runs = tuple[tuple[Run, ...], ...]
"""Runs of positions along each dim."""


def _placed(array: LayerArray, x: float, y: float) -> tuple[list[list[_Box]], float, bool]:
    """Return the boxes of every part, where they end, and whether those of each were put together.

    They are where they are many, or too narrow for a number.
    """
    for together in (False, True):
        runs = _together(array) if together else [part.runs for part in array.parts]
        boxes = [_boxes(array, each) for each in runs]
        wide, tall = _size(array, boxes)
        placed = [
            [(x + a * wide, y + b * tall, c * wide, d * tall) for a, b, c, d in each]
            for each in boxes
        ]
        narrow = any(
            len(of) > 1 and not _label(part.ranks, *_largest(of))
            for part, of in zip(array.parts, placed, strict=True)
        )
        if together or not (narrow or sum(map(len, boxes)) > max(MOST_BOXES, len(boxes))):
            break
    return placed, y + tall, together


def _together(array: LayerArray) -> list[_Runs]:
    """Return the runs of every part moved next to each other."""
    runs: list[_Runs] = [part.runs for part in array.parts]
    for dim in range(len(array.shape)):
        moved, at = {}, 0
        for own in sorted({each[dim] for each in runs}):
            size = sum(stop - start for start, stop in own)
            moved[own] = ((at, at + size),)
            at += size
        if any(len(own) > 1 for own in moved):
            runs = [(*each[:dim], moved[each[dim]], *each[dim + 1 :]) for each in runs]
    return runs


def _boxes(array: LayerArray, runs: _Runs) -> list[_Box]:
    downs, acrosses = (_spans(array, runs, dims) for dims in (array.down, array.across))
    return [(x, y, right - x, foot - y) for (y, foot), (x, right) in product(downs, acrosses)]


def _spans(array: LayerArray, runs: _Runs, dims: Sequence[int]) -> list[tuple[float, float]]:
    """Return where the runs lie along a side of length 1, each dim within the runs of the last."""
    found = [(0.0, 1.0)]
    for dim in dims:
        size = array.shape[dim] or 1
        found = [
            (low + (high - low) * start / size, low + (high - low) * stop / size)
            for low, high in found
            for start, stop in runs[dim]
            if start < stop
        ]
    return found


def _size(array: LayerArray, boxes: Sequence[Sequence[_Box]]) -> tuple[float, float]:
    """Return width and height of an array, so that there is room for the numbers of ranks."""
    rows, columns = (prod(array.shape[dim] for dim in dims) for dims in (array.down, array.across))
    if not array.across:
        columns = max(1, rows // 4)
    scale = SIDE / max(rows, columns, 1)
    lines = len({(y, height) for each in boxes for _, y, _, height in each})
    needed = lines * (ROW + STRIP * any(len(part.ranks) > 1 for part in array.parts))
    height = max(float(LEAST), rows * scale, min(float(MOST), needed))
    return max(float(LEAST), columns * scale), height


def _largest(boxes: Sequence[_Box]) -> _Box:
    return max(boxes, key=lambda box: box[2] * box[3])


def _part(array: LayerArray, part: Part, boxes: Sequence[_Box]) -> str:
    said = told(array, part)
    inside = []
    for x, y, width, height in boxes:
        if len(part.ranks) == 1:
            color = RANKS[part.ranks[0] % len(RANKS)]
            inside.append(rect(x, y, width, height, color, stroke=_EDGE))
            continue
        inside.append(rect(x, y, width, height, SHARED, stroke="currentColor"))
        some = part.ranks[:MOST_RANKS]
        for n, rank in enumerate(some):
            each = width / len(some)
            color = RANKS[rank % len(RANKS)]
            inside.append(rect(x + n * each, y, each, min(STRIP, height / 2), color, stroke=None))
    if boxes:
        inside.append(_label(part.ranks, *_largest(boxes)))
    runs = " ".join(
        ",".join(f"{start}:{stop}" for start, stop in own[:MOST_RUNS]) for own in part.runs
    )
    mine = (
        f'{marks(part.ranks, stop=bool(boxes))} data-wb-array="{array.kind}" data-wb-runs="{runs}"'
    )
    name = escape(said)
    return f'<g{mine} role="img" aria-label="{name}"><title>{name}</title>{"".join(inside)}</g>'


_EDGE = "var(--jp-layout-color0, #fff)"
"""Between parts: the colour of the page."""


def _label(ranks: Sequence[int], x: float, y: float, width: float, height: float) -> str:
    """Return the ranks' numbers on a plate in a part; upright where there is no room across."""
    free = height - STRIP if len(ranks) > 1 else height
    middle = (x + width / 2, y + height - free / 2)
    for turned, said in product((False, True), (named(ranks), numbered(ranks))):
        along, beside = (free, width) if turned else (width, free)
        long, high = width_of(said, TEXT) + 8, TEXT + 5
        if along < long + 8 or beside < high + 2:
            continue
        spin = f' transform="rotate(-90 {middle[0]:.1f} {middle[1]:.1f})"' if turned else ""
        plate = (middle[0] - long / 2, middle[1] - high / 2, long, high)
        return (
            f"<g{spin}>{rect(*plate, '#fff', stroke=None)}"
            f'<text x="{middle[0]:.1f}" y="{middle[1] + 5:.1f}" font-size="{TEXT}" '
            f'font-weight="600" fill="#111" text-anchor="middle">{escape(said)}</text></g>'
        )
    return ""
