"""The picture of chunks by worker."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import workbench as wb


def cells(svg: str) -> int:
    return svg.count("<rect") - svg.count("<pattern")


def test_chunks_that_moved_are_hatched_in_the_colour_of_the_worker_that_had_them() -> None:
    table = wb.placement([f"x/{n}" for n in range(40)], 3)
    shown = wb.picture(table)
    assert cells(shown.svg) == 40 + 2 * 3  # and beside each worker its colour and its mean
    assert "url(#wb-hatch" not in shown.svg
    after = table.with_workers(4)
    moved = wb.picture(table, after=after)
    ElementTree.fromstring(moved.svg)
    assert moved.svg.count('fill="url(#wb-hatch') == table.moved(after).chunks > 0
    assert str(table.moved(after)) in repr(moved)
    assert str(after).splitlines()[2] in repr(moved)


def test_many_chunks_are_drawn_as_bars() -> None:
    shown = wb.picture(wb.placement([f"x/{n}" for n in range(4000)], 5))
    assert cells(shown.svg) == 3 * 5
    assert "4,000 chunks on 5 workers by rendezvous" in shown.svg


def test_beside_each_worker_stands_how_many_chunks_came_from_where() -> None:
    table = wb.placement([f"x/{n}" for n in range(40)], 3)
    after = table.with_workers({"0": 1, "2": 1})
    came = table.moved(after).keys.values()
    for name in after.workers:
        count = sum(to == name for _, to in came)
        assert f">+ {count} from 1<" in wb.picture(table, after=after).svg
    assert f">{next(iter(table.moved(after).keys))}: 1 B, came from worker 1<" in (
        wb.picture(table, after=after).svg
    )


def test_hatches_of_two_pictures_on_one_page_have_other_names() -> None:
    table = wb.placement([f"x/{n}" for n in range(40)], 3)
    names = [
        set(re.findall(r'pattern id="([^"]+)"', wb.picture(table, after=table.with_workers(4)).svg))
        for _ in range(2)
    ]
    assert names[0].isdisjoint(names[1])
