"""The page of placement: what it places, what its buttons do, and what each scheme moves."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from torch import nn

import workbench as wb
from workbench.errors import PlanError
from workbench.hashing import SCHEMES
from workbench.plan import Plan
from workbench.ui.language import speaking
from workbench.ui.placement_page import PlacementPage
from workbench.ui.placement_state import MOST_WORKERS, Schemes, chunks_of
from workbench.ui.placement_table import schemes_table

KEYS = {f"x/{n}": 1000 + n for n in range(40)}


@pytest.fixture(scope="module")
def work() -> wb.Workload:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 10))

    images = np.zeros((50, 1, 6, 6), "float32")
    return wb.Workload(model=net, data=(images, np.arange(50) % 10), batch_size=20)


@pytest.fixture(scope="module")
def planned(work: wb.Workload) -> Plan:
    return wb.plan(work)


@pytest.mark.parametrize(
    ("kind", "total"),
    [
        ("data", 50 * (36 * 4 + 8)),
        ("parameters", 4 * (4 * 9 + 4 + 640 + 10)),
        ("inputs", 20 * 4 * (36 + 64 + 64)),
    ],
)
@pytest.mark.parametrize("count", [1, 7, 30])
def test_every_byte_of_a_workload_is_in_one_chunk(
    planned: Plan, kind: str, total: int, count: int
) -> None:
    chunks = chunks_of(planned, kind, count)
    assert sum(chunks.values()) == total
    if kind == "data":
        assert len(chunks) == count
    rows = 64 * 4 if kind == "parameters" else total  # the longest row: it is not cut
    assert max(chunks.values()) <= total / count + max(rows, total / count)


def test_what_a_layer_is_given_twice_are_two_chunks() -> None:
    layer = nn.Linear(3, 3)
    work = wb.Workload(
        model=nn.Sequential(layer, nn.ReLU(), layer),
        data=(np.zeros((8, 3), "float32"), np.zeros((8, 3), "float32")),
        loss=nn.MSELoss(),
        batch_size=8,
    )
    assert sum(chunks_of(wb.plan(work), "inputs", 3).values()) == 3 * 8 * 3 * 4


@pytest.mark.parametrize(
    ("kind", "count", "says"),
    [
        ("data", 0, "Chunks is 0; give a whole number from 1 to 1,000"),
        ("data", True, "Chunks is True"),
        ("gradients", 5, "no kind 'gradients' of chunks; there are data, parameters, inputs"),
    ],
)
def test_what_cannot_be_chunks_is_refused(planned: Plan, kind: str, count: int, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        chunks_of(planned, kind, count)


def test_each_change_is_counted_from_the_one_before() -> None:
    schemes = Schemes.place(KEYS, 3)
    assert schemes.moved("modulo") is None
    name, joined = schemes.join()
    assert name == "3"
    left = joined.leave("1")
    assert list(left.workers) == ["0", "2", "3"]
    for scheme in SCHEMES:
        move = left.moved(scheme)
        assert move is not None
        assert move.keys == joined.tables[scheme].moved(left.tables[scheme]).keys
    assert {source for source, _ in left.moved("rendezvous").keys.values()} == {"1"}


def test_a_worker_that_counts_more_is_given_what_others_lose() -> None:
    heavier = Schemes.place(KEYS, 4).change({"0": 4.0, "1": 1.0, "2": 1.0, "3": 1.0})
    move = heavier.moved("rendezvous")
    assert move is not None
    assert move.fair == pytest.approx(4 / 7 - 1 / 4)
    assert {to for _, to in move.keys.values()} == {"0"}
    assert heavier.tables["rendezvous"].bytes["0"] > sum(KEYS.values()) * 0.45


def test_the_last_worker_stays_and_more_than_can_be_drawn_do_not_come() -> None:
    with pytest.raises(PlanError, match="Worker 0 is the last one"):
        Schemes.place(KEYS, 1).leave("0")
    with pytest.raises(PlanError, match=f"draws {MOST_WORKERS} workers at most"):
        Schemes.place(KEYS, MOST_WORKERS).join()


class Cells(HTMLParser):
    """The cells of a table's body."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def test_the_table_has_a_row_for_every_scheme_and_marks_the_one_that_is_drawn() -> None:
    _, schemes = Schemes.place(KEYS, 3).join()
    head, *rows = Cells(schemes_table(schemes, "ring")).rows
    assert [row[0].strip("▸ ") for row in rows] == list(SCHEMES)
    assert [row[0].startswith("▸") for row in rows] == [scheme == "ring" for scheme in SCHEMES]
    assert all(len(row) == len(head) for row in rows)
    for row, scheme in zip(rows, SCHEMES, strict=True):
        move = schemes.moved(scheme)
        assert move is not None
        assert row[1:3] == [f"{schemes.tables[scheme].balance:.2f}", f"{move.chunks:,}"]
        assert row[4] == f"{move.share:.1%}"


def button(page: PlacementPage, title: str) -> None:
    def within(widget: object) -> list[object]:
        return [widget, *(w for c in getattr(widget, "children", ()) for w in within(c))]

    [found] = [w for w in within(page.root) if getattr(w, "description", "") == title]
    found.click()


def test_buttons_and_weights_change_the_workers_and_bad_ones_say_why() -> None:
    page = wb.where(KEYS, workers=2)
    button(page, "Add a worker")
    assert list(page.schemes.workers) == ["0", "1", "2"]
    assert "url(#wb-hatch" in page._picture.value
    button(page, "Remove 0")
    assert list(page.schemes.workers) == ["1", "2"]
    assert "Worker 0 leaves: " in page._message.value
    weight = page._list.children[0].children[0]
    weight.value = 3.0
    assert page.schemes.workers == {"1": 3.0, "2": 1.0}
    weight.value = 0.0
    assert "has the capacity 0.0; give one above 0" in page._message.value
    assert weight.value == 3.0
    page._scheme.value = "modulo"
    assert "by modulo" in page._picture.value
    button(page, "Remove 1")
    button(page, "Remove 2")
    assert "Worker 2 is the last one" in page._message.value
    button(page, "Start again")
    assert page.schemes.workers == {"0": 1.0, "1": 1.0}
    assert page.schemes.before is None
    page.close()


def test_the_page_speaks_the_language_that_it_was_told_to_speak() -> None:
    page = wb.where(KEYS, workers=2)
    page.join()
    with speaking("zh"):
        page.speak()
    assert page._join.description == "增加一个工作进程"
    assert "加入一个工作进程：移动" in page._message.value
    page.leave("0")  # in a thread that speaks English
    assert "工作进程 0 离开：移动" in page._message.value
    assert "均衡" in page._table.value
    assert "虚线" in page._picture.value
    page.leave("1")
    page.leave("2")
    assert "工作进程 2 是最后一个" in page._message.value
    page.close()


def test_the_page_of_a_workload_keeps_its_workers_when_only_the_strategy_changes(
    work: wb.Workload, planned: Plan
) -> None:
    page = wb.where(work, workers=["left", "<right>"])
    assert len(page.schemes.chunks) == 50  # no more chunks than samples
    page.join()
    page.show(wb.plan(work, "data=2"))
    assert len(page.schemes.workers) == 3
    page._kind.value = "parameters"
    assert next(iter(page.schemes.chunks)).startswith("0.weight/")
    assert "<right>" not in page._picture.value + page._table.value + page._message.value
    page.show(wb.plan(work.with_(batch_size=10)))  # the same parameters
    page._kind.value = "inputs"
    assert sum(page.schemes.chunks.values()) == 10 * 4 * (36 + 64 + 64)
    assert "max/mean" in str(page)
    bundle = page._repr_mimebundle_()
    assert {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
    page.close()
