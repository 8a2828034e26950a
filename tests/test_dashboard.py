"""Our pages in the Dask dashboard, and what Dask's own pages tell of ranks."""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource, Plot
from distributed import Client
from distributed.dashboard import scheduler as dask_dashboard
from distributed.diagnostics.task_stream import TaskStreamPlugin
from fake_comparison import ROWS
from leftovers import until
from workloads import make

from workbench.cluster.feed import News
from workbench.cluster.lab import Lab
from workbench.cluster.rank_meter import CPU, MEMORY
from workbench.dashboard import pages, parts
from workbench.dashboard.board import MOST_ROWS, MOST_SERIES, Board
from workbench.planning import plan
from workbench.run import run
from workbench.timeline import Bar, Timeline
from workbench.ui.lab import CONFIG

pytestmark = pytest.mark.timeout(120)

INDIVIDUAL = [path for path in pages.PAGES if "individual" in path]
ABOUT = {
    "workload": "digits",
    "batch": 32,
    "status": "running",
    "doing": "data=2, repeat 1 of 3",
    "done": 7,
    "total": 90,
    "eta_s": 12.4,
    "rows": ROWS,
}


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read().decode()


def listed(client: Client) -> set[str]:
    base = client.dashboard_link.removesuffix("/status")
    return set(json.loads(get(f"{base}/individual-plots.json")).values())


@pytest.fixture
def board() -> Board:
    made = Board()
    made.take(News(new_show=True, facts=ABOUT))
    return made


@pytest.fixture
def scheduler(board: Board) -> SimpleNamespace:
    """Stands for a scheduler, as far as pages know one."""
    return SimpleNamespace(plugins={Board.name: board})


def opened(scheduler: Any, path: str) -> tuple[Document, pages.Page]:
    doc = Document()
    pages.PAGES[path](scheduler, {}, doc)
    [page] = doc.components
    return doc, page


def column(doc: Document, source: str, name: str) -> list[Any]:
    found = doc.select_one({"type": ColumnDataSource, "name": source})
    return list(found.data[name])


def test_news_replace_facts_and_lengthen_series(board):
    board.take(News(facts={"done": 8}, rows={"steps a": [1, 2]}))
    board.take(News(rows={"steps a": [3]}))
    assert board.facts == {**ABOUT, "done": 8}
    assert board.series == {"steps a": [1, 2, 3]}
    version = board.version
    board.publish(pickle.dumps(News(new_show=True, facts={"done": 0})))
    assert (board.facts, board.series, board.version) == ({"done": 0}, {}, version + 1)


def test_the_board_has_a_limit(board):
    board.take(News(rows={"steps a": list(range(3 * MOST_ROWS))}))
    kept = board.series["steps a"]
    assert MOST_ROWS / 2 <= len(kept) <= MOST_ROWS
    assert kept[0] == 0
    assert kept == sorted(kept)
    board.take(News(rows={f"steps {n}": [n] for n in range(2 * MOST_SERIES)}))
    assert len(board.series) == MOST_SERIES


def test_the_page_draws_what_the_board_has(board, scheduler):
    doc, page = opened(scheduler, "/workbench")
    assert column(doc, "wb-speedup", "cores") == [1, 2, 2]
    assert column(doc, "wb-loss", "label") == []
    cut = plan(make(model=make_image_net, data=images(), batch_size=4), "spatial=2")
    bars = (Bar(0, "compute", "", 0.0, 0.1, 0), Bar(1, "wait", "sum", 0.0, 0.1, 0))
    board.take(
        News(
            facts={
                "plan": cut,
                "timeline": Timeline("spatial=2", 3, bars),
                "run r1": {"strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu"},
            },
            rows={"steps r1": [(0.1, 2.0, 64.0), (0.2, 1.5, 64.0)], "steps proof": [(0, 1, 2)]},
        )
    )
    page.update()
    assert column(doc, "wb-loss", "loss") == [[2.0, 1.5]]
    assert column(doc, "wb-timeline", "label") == ["rank 0", "rank 1"]
    assert column(doc, "wb-accuracy", "label") == []  # of no batch it is known yet
    assert column(doc, "wb-memory", "label") == []
    words = " ".join(div.text for div in doc.select({"type": parts.Div}))
    assert "digits, batch of 32 · Running · data=2, repeat 1 of 3 · step 7 of 90" in words
    assert "1 page of the workbench open" in words
    assert "<svg" in words
    board.take(News(new_show=True, facts={**ABOUT, "workload": "<b>x</b>", "rows": []}))
    page.update()
    assert column(doc, "wb-speedup", "cores") == column(doc, "wb-timeline", "label") == []
    words = " ".join(div.text for div in doc.select({"type": parts.Div}))
    assert "&lt;b&gt;x" in words
    assert "<svg" not in words


@pytest.mark.parametrize("path", pages.PAGES)
def test_every_figure_says_how_to_read_it_and_has_its_data_as_a_table(board, scheduler, path):
    cut = plan(make(model=make_image_net, data=images(), batch_size=4), "spatial=2")
    bars = (Bar(0, "compute", "<b>", 0.0, 0.1, 0),)
    board.take(News(facts={"plan": cut, "timeline": Timeline("spatial=2", 3, bars)}))
    doc, page = opened(scheduler, path)
    figures = len(list(doc.select({"type": Plot}))) + path.endswith(("workbench", "cut"))
    words = " ".join(div.text for div in doc.select({"type": parts.Div}))
    assert words.count("How to read it") == figures
    cut_shown = path.endswith(("workbench", "cut"))
    assert words.count("Its data as a table") == cut_shown  # of what goes on it would close again
    board.take(News(facts={"status": "done"}))
    page.update()
    words = " ".join(div.text for div in doc.select({"type": parts.Div}))
    assert words.count("Its data as a table") == figures
    assert "<b>" not in words.replace("<b>spatial", "").replace("<b lang", "")


def make_image_net() -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 64, 2))


def images() -> tuple[Any, Any]:
    import numpy as np

    return np.zeros((8, 1, 8, 8), np.float32), np.arange(8) % 2


@pytest.mark.parametrize(
    ("asked", "says"),
    [(b"zh", "运行中"), (b"en", "Running"), (b"fr", "Running"), (b"\xff<b>", "Running")],
)
def test_a_page_speaks_what_its_address_asks_for(board, scheduler, asked, says, monkeypatch):
    monkeypatch.setenv("WORKBENCH_LANG", "en")
    request = SimpleNamespace(arguments={"lang": [asked]})
    context = SimpleNamespace(request=request, destroyed=False)
    board.take(News(facts={"plan": plan(make(model=make_image_net, data=images()), "spatial=2")}))
    for path in pages.PAGES:
        doc = Document()
        doc._session_context = lambda: context
        pages.PAGES[path](scheduler, {}, doc)
        [page] = doc.components
        for _again in range(2):  # as it opens, and when there is news
            words = " ".join(div.text for div in doc.select({"type": parts.Div}))
            assert says in words
            assert ('href="?lang=en"' in words) is (asked == b"zh")
            assert ('href="?lang=zh"' in words) is (asked != b"zh")
            board.take(News(facts={"done": 8}))
            page.update()
        if path.endswith("cut"):
            assert ("取来" in words) is (asked == b"zh")


@pytest.mark.parametrize("path", ["/workbench", "/individual-workbench-metrics"])
def test_accuracy_and_memory_of_ranks_are_drawn(board, scheduler, path):
    doc, page = opened(scheduler, path)
    about = {"strategy": "data=2", "ranks": 2, "threads": 1, "device": "cpu"}
    facts = {}
    for name, peaks in (("r1", (3 * 2**20, 0)), ("r2", (2**20, 5 * 2**20))):
        facts |= {f"run {name}": about, f"memory {name}": ((2**20, 2**20), peaks)}
    rows = {"steps r1": [(0.1, 2.0, 64.0), (0.2, 1.5, 64.0)], "batches r1": [(0.1, 0.25)]}
    board.take(News(facts=facts, rows=rows))
    page.update()
    assert column(doc, "wb-accuracy", "batch_accuracy") == [[25.0]]
    assert math.isnan(column(doc, "wb-accuracy", "accuracy")[0])
    assert column(doc, "wb-memory", "label") == ["data=2, rank 0", "data=2, rank 1"]
    assert column(doc, "wb-memory", "predicted") == [1.0, 1.0]
    assert column(doc, "wb-memory", "measured") == [3.0, 5.0]  # the most of both runs
    board.take(News(facts={"accuracy r1": 0.75}))
    page.update()
    assert column(doc, "wb-accuracy", "accuracy") == [75.0]


def test_a_page_does_nothing_without_news(board, scheduler, monkeypatch):
    _doc, page = opened(scheduler, "/individual-workbench-speedup")
    drawn = []
    monkeypatch.setattr(page, "_draw", lambda part, board: drawn.append(part))
    page.update()
    assert drawn == []
    board.take(News(facts={"done": 9}))
    page.update()
    page.update()
    assert len(drawn) == 2  # each part once


@pytest.mark.parametrize(("alone", "waits_s"), [(True, 2.0), (False, 5.0)])
def test_a_page_leaves_what_has_all_cores_at_work_alone(
    board, scheduler, monkeypatch, alone, waits_s
):
    watch = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(pages, "time", SimpleNamespace(monotonic=lambda: watch.now_s))
    _doc, page = opened(scheduler, "/individual-workbench-speedup")
    drawn = []
    monkeypatch.setattr(page, "_draw", lambda part, board: drawn.append(part))

    def news(after_s, **facts):
        watch.now_s += after_s
        board.take(News(facts=facts))
        page.update()
        count = len(drawn) // 2  # each page has two parts
        drawn.clear()
        return count

    going = {"status": "running", "crowded": True, **({"strategy": "data=2"} if alone else {})}
    assert news(0.5, status="starting") == 1
    assert news(0.5, **going) == 1  # it begins
    assert news(0.5, done=9) == 0
    assert news(0.5, **{"run r2": {}}) == 1  # the next begins
    assert news(waits_s - 0.1, done=10) == 0
    assert news(0.2, done=11) == 1
    assert news(0.1, status="done") == 1
    assert news(0.1, crowded=False) == 1
    assert news(0.1, done=12) == 1


@pytest.mark.parametrize("path", INDIVIDUAL)
def test_a_page_that_fails_does_not_trouble_the_scheduler(board, scheduler, path, caplog):
    _doc, page = opened(scheduler, path)
    with caplog.at_level(logging.ERROR):
        for done in (1, 2):
            board.take(News(facts={"rows": [{}], "plan": object(), "timeline": 3, "done": done}))
            page.update()
    assert len(caplog.records) == 1  # said once
    board.take(News(new_show=True, facts=ABOUT))
    page.update()


def test_a_scheduler_without_a_board_has_empty_pages():
    for path in pages.PAGES:
        opened(SimpleNamespace(plugins={}), path)[1].update()


def test_the_task_stream_has_a_bar_for_a_segment_of_a_rank(board):
    stream = TaskStreamPlugin(None, maxlen=10)
    board._scheduler = SimpleNamespace(plugins={TaskStreamPlugin.name: stream})
    segment = {
        **{"worker": "tcp://w", "run": "r1", "rank": 1, "what": "data=2", "step": 7},
        **{"start_s": 10.0, "stop_s": 11.0},
    }
    board.log_event("workbench-segments", segment)
    board.log_event("workbench", segment)
    board.log_event("workbench-segments", {"worker": "nonsense"})
    bars = stream.rectangles(0)
    assert (bars["name"], bars["duration"]) == (["data=2"], [1000.0])
    assert bars["worker_thread"] == ["tcp://w-rank 1"]


def test_a_run_on_our_own_cluster_shows_everywhere(lab: Lab, tmp_path: Path):
    client = lab.client
    assert lab.feed.on
    assert listed(client) >= set(INDIVIDUAL)
    base = lab.dashboard_link.removesuffix("/status")
    assert all("Bokeh" in get(f"{base}{path}") for path in INDIVIDUAL)
    assert 'href="workbench"' in get(f"{base}/workbench")
    assert "Workbench Speedup" in get(f"{base}/status")  # in the menu
    client.get_task_stream()  # from now on Dask records one
    going = run(make(), "data=2", steps=100_000, folder=tmp_path, lab=lab)

    def metrics() -> list[dict[str, Any]]:
        return [worker["metrics"] for worker in client.scheduler_info()["workers"].values()]

    def seen(dask_scheduler: Any) -> tuple[Any, ...]:
        board = dask_scheduler.plugins["workbench-board"]
        spent = dask_scheduler.cumulative_worker_metrics
        kinds = {key[2] for key in spent if key[:2] == ("execute", "data=2")}
        return board.facts, board.series, kinds

    def drawn() -> dict[str, Any]:
        facts = client.run_on_scheduler(seen)[0]  # those of a run before, until this one's come
        return facts if facts.get("total") == 100_000 and "timeline" in facts else {}

    assert until(drawn, 40)
    assert until(lambda: all(each[MEMORY] > 10 for each in metrics()), 40)
    assert until(lambda: "rank comm" in client.run_on_scheduler(seen)[2], 40)
    timeline = drawn()["timeline"]
    memory = f"memory {going.run_id}"
    assert until(lambda: all(drawn()[memory][1]), 40)  # measured while it goes on
    assert drawn()[memory][0] == going.predicted_memory_bytes
    going.stop()
    assert until(lambda: client.run_on_scheduler(seen)[0]["status"] == "stopped", 40)
    facts, series, kinds = client.run_on_scheduler(seen)
    assert (facts["workload"], facts["batch"]) == ("custom", 4)
    assert facts["plan"].strategy == "data=2"
    assert len(timeline.bars) > 2
    steps = series[f"steps {going.run_id}"]
    batches = series[f"batches {going.run_id}"]
    assert all(0 <= accuracy <= 1 for _, accuracy in batches)
    assert kinds >= {"rank compute", "rank comm"}
    assert len(steps) <= MOST_ROWS
    bars = [task for task in client.get_task_stream() if str(task["key"]).startswith("data=2-")]
    assert {bar["thread"] for bar in bars} == {"rank 0", "rank 1"}
    assert until(lambda: all(each[MEMORY] == each[CPU] == 0 for each in metrics()), 40)


def test_the_layout_of_jupyterlab_names_pages_that_there_are():
    folder = CONFIG / "labconfig" / "default_setting_overrides.d"
    settings = json.loads((folder / "dask-workbench.json").read_text())
    layout = settings["dask-labextension:plugin"]["defaultLayout"]
    assert set(layout) <= {path.strip("/") for path in dask_dashboard.applications}
    assert {place["ref"] for place in layout.values()} <= {None, *layout}
    extension = (CONFIG / "labextensions/dask-workbench/static/remoteEntry.js").read_text()
    opened = set(re.findall(r'name: "(\w+)", label', extension))
    assert opened
    assert {f"/individual-workbench-{name}" for name in opened} <= set(INDIVIDUAL)
