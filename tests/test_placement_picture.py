"""The picture of chunks by worker."""

from __future__ import annotations

from xml.etree import ElementTree

import workbench as wb


def test_chunks_that_moved_are_hatched_in_the_colour_of_the_worker_that_had_them() -> None:
    table = wb.placement([f"x/{n}" for n in range(40)], 3)
    shown = wb.picture(table)
    assert shown.svg.count("<rect") - shown.svg.count("<pattern") == 40 + 3  # and the means
    assert "url(#wb-hatch" not in shown.svg
    after = table.with_workers(4)
    moved = wb.picture(table, after=after)
    ElementTree.fromstring(moved.svg)
    assert moved.svg.count('fill="url(#wb-hatch') == table.moved(after).chunks > 0
    assert str(table.moved(after)) in repr(moved)
    assert str(after).splitlines()[2] in repr(moved)


def test_many_chunks_are_drawn_as_bars() -> None:
    shown = wb.picture(wb.placement([f"x/{n}" for n in range(4000)], 5))
    assert shown.svg.count("<rect") - shown.svg.count("<pattern") == 5 + 5
    assert "4,000 chunks on 5 workers by rendezvous" in shown.svg
