"""Documents from anywhere: a field that is wrong is named, and no text becomes a tag."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_comparison import ROWS, row
from panel_fakes import shown, until
from test_attaching import SUMMARY, going_on, step

import workbench as wb
from workbench import documents
from workbench.ui import stills
from workbench.ui.costs import cost_table
from workbench.ui.language import speaking
from workbench.ui.report import report_html
from workbench.ui.table import details_table, rows_table
from workbench.ui.why_table import why_table

pytestmark = pytest.mark.timeout(60)

TAG = "</script><img src=x onerror=alert(1)>"
WHOLE: dict[str, Any] = {
    "machine": {"cores": 2, "cpu_model": "fast", "gpus": ["one"], "versions": {"torch": "2"}},
    "workload": {"name": "net", "batch_size": 128, "samples": 1000, "seed": 0, "dtype": "float32"},
    "status": "done",
    "error": "It broke.",
    "unproved": "It could not be proved.",
    "refused": {"tensor=2": "It has no weights."},
    "steps": 12,
    "repeats": 3,
    "progress": {"done_steps": 90, "total_steps": 90},
    "price_per_worker_hour": 0.5,
    "rows": [
        *({**each, "loss": 0.5, "load_share": 0.01, "proof": ""} for each in ROWS),
        row("data=4", 4, 1, 0.03, same_result=True, proof="in float64", price_per_epoch=0.1),
    ],
}


def written(folder: Path, document: Any) -> Path:
    file = folder / "told.json"
    file.write_text(json.dumps(document))
    return file


def texts_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where a document has a text."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from texts_in(value[key], (*path, key))


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """Return the document with one value replaced."""
    document = copy.deepcopy(WHOLE)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def drawn(found: Any) -> str:
    """Return all that is made of a comparison as HTML, but for BokehJS itself."""
    with speaking("en"):
        rows = found.rows
        tables = [make(rows) for make in (rows_table, details_table, cost_table)]
        page = report_html(found)
        return "\n".join([*tables, why_table(rows, 2), stills.svg(found), page])


def test_a_whole_document_is_read(tmp_path: Path) -> None:
    found: Any = wb.attach(written(tmp_path, WHOLE))
    assert found.rows == WHOLE["rows"]
    assert "<img" not in drawn(found)
    assert "2.67×" in drawn(found)


@pytest.mark.parametrize("path", [*texts_in(WHOLE)], ids=str)
def test_no_text_becomes_a_tag(tmp_path: Path, path: tuple[Any, ...]) -> None:
    file = written(tmp_path, changed(path, TAG))
    if path[-1] in ("status", "strategy"):
        with pytest.raises(wb.PlanError, match=f"{path[-1]} is '</script><img src=x"):
            wb.attach(file)
    else:
        assert "<img" not in drawn(wb.attach(file))


def test_no_name_becomes_a_tag(tmp_path: Path) -> None:
    document = copy.deepcopy(WHOLE)
    for place in (document["machine"], document["workload"], document["refused"], document):
        place[TAG] = "x"
    document["rows"][0][TAG] = document["rows"][0]["run"] = TAG
    found: Any = wb.attach(written(tmp_path, document))
    assert "<img" not in drawn(found)
    assert "run" not in found.rows[0]


FIELDS = {**documents.ROW, **documents.MORE_OF_ROW}


@pytest.mark.parametrize("wrong", [TAG, [], True, -1.5, 1e999, 10**400], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_a_wrong_type_is_named(tmp_path: Path, name: str, wrong: Any) -> None:
    if FIELDS[name].fits(None if wrong == 1e999 else wrong):
        return
    with pytest.raises(wb.PlanError) as refused:
        wb.attach(written(tmp_path, changed(("rows", 2, name), wrong)))
    assert f"told.json cannot be shown: rows[2].{name} is " in str(refused.value)
    assert f"and should be {FIELDS[name].what}." in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
    with speaking("zh"):
        assert "无法显示：rows[2]" in wb.ui.language.translate(str(refused.value))


@pytest.mark.parametrize("name", documents.ROW)
def test_a_field_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    document = copy.deepcopy(WHOLE)
    del document["rows"][1][name]
    with pytest.raises(wb.PlanError, match=rf"rows\[1\].{name} is missing; it should be "):
        wb.attach(written(tmp_path, document))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("rows",), [{}], r"rows\[0\].strategy is missing"),
        (("rows",), ["x"], r"rows is \['x'\], and should be a list of objects"),
        (("rows",), WHOLE["rows"][2:], "no row of 'serial' that they are over"),
        (("rows", 2, "strategy"), "data=1", "should be a strategy that is known here"),
        (("rows", 0, "core_s_per_epoch"), None, "core_s_per_epoch is None, and should be a number"),
        (("machine", "cores"), "two", r"machine.cores is 'two', and should be a whole number"),
        (("workload", "batch_size"), 0, r"workload.batch_size is 0, and should be a whole number"),
        (("refused",), {"x": 1}, "refused is .* should be an object of texts"),
        (("progress", "done_steps"), None, "progress.done_steps is None"),
        (("lines",), [{"strategy": "serial"}], r"lines\[0\].ranks is missing"),
    ],
)
def test_what_is_wrong_elsewhere_is_named(
    tmp_path: Path, path: tuple[Any, ...], value: Any, says: str
) -> None:
    with pytest.raises(wb.PlanError, match=says):
        wb.attach(written(tmp_path, changed(path, value)))


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "\ud800", '{"rows": ' + "1" * 5000])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "told.json"
    file.write_text(text, errors="surrogatepass")
    with pytest.raises(wb.PlanError, match="is not the JSON of a comparison"):
        wb.attach(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"threads": TAG},
            "threads is '</script><img src=x .* should be a whole number",
        ),
        ({"strategy": 3}, "strategy is 3, and should be a strategy"),
        ({"peak_memory_bytes": ["x"]}, "peak_memory_bytes is .* should be a list of whole numbers"),
    ],
)
def test_a_run_is_checked_too(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder = going_on(tmp_path).path
    (folder / "run.json").write_text(json.dumps(SUMMARY | change))
    with pytest.raises(wb.PlanError, match=f"run.json cannot be shown: {says}"):
        wb.attach(folder)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({**step(11), "loss": TAG}, "a step is .* should be an object of numbers"),
        (
            {"step": 11, "loss": 1.0},
            "step 11 has no comm_s, compute_s, load_s, optimizer_s, overhead_s",
        ),
    ],
)
def test_its_steps_are_checked_too(tmp_path: Path, line: Any, says: str) -> None:
    folder = going_on(tmp_path).path
    with (folder / "steps.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(wb.PlanError, match=f"run.json cannot be shown: {says}"):
        wb.attach(folder)


def test_a_loss_that_is_no_number_is_none(tmp_path: Path) -> None:
    found: Any = wb.attach(written(tmp_path, changed(("rows", 2, "loss"), float("nan"))))
    assert found.rows[2]["loss"] is None
    folder = going_on(tmp_path)
    with (folder.path / "steps.jsonl").open("a") as file:
        file.write(json.dumps({**step(11), "loss": float("nan")}) + "\n")
    assert wb.attach(folder.path).step == 11


def test_a_fresh_panel_shows_a_document(opened: Any, rooms: Any, tmp_path: Path) -> None:
    document = changed(("error",), None)
    for path in texts_in(document):
        if path[-1] not in ("status", "strategy"):
            place = document
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = TAG if path[-1] != "device" else "cpu"
    opened.attach(str(written(tmp_path, document)))
    until(lambda: "From a folder: Done" in shown(opened), "the document")
    view = opened._view
    until(lambda: "data=4" in view._table.value, "the table")
    charts = {chart.name: chart.source.data for chart in view._charts}
    assert charts["speedup"]["cores"] == [1, 2, 2, 4]
    assert len(charts["share"]["total"]) == 4
    assert "data=4" in view._why.value
    assert view._details.value.count("<table") == 2
    assert "<img" not in "".join(
        widget.value for widget in (view._why, view._details, view._result, view._broken)
    )
    assert "<img" not in shown(opened)
    assert opened.state.broken == ()


def test_a_document_that_is_refused_leaves_the_panel_as_it_is(
    opened: Any, rooms: Any, tmp_path: Path
) -> None:
    opened.attach(str(written(tmp_path, WHOLE | {"rows": [{}]})))
    until(lambda: "rows[0].strategy is missing" in opened._view.keep._said.value, "the sentence")
    opened.run()
    until(lambda: rooms.compared, "the comparison")
    rooms.compared[0][-1].go_on("done")
    until(lambda: "2.00×" in opened._view._table.value, "the table")
