"""Runs and comparisons as the output of a cell."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

from fake_comparison import ROWS
from IPython.core.formatters import DisplayFormatter
from test_attaching import SUMMARY, going_on, step

import workbench as wb
from workbench.records import RunFolder
from workbench.ui.language import speaking


def shown(result) -> str:
    """Return a result's HTML as an IPython that has imported the package makes it."""
    formatter = DisplayFormatter()
    wb._show_results(SimpleNamespace(display_formatter=formatter))
    data, _ = formatter.format(result)
    assert data["text/plain"] == repr(result)
    return data["text/html"]


def cells(html: str) -> list[str]:
    """Return the cells of the first table's first row."""
    body = html.partition("<tbody>")[2].partition("</tr>")[0]
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", body)]


def test_a_run_is_shown_as_far_as_it_is(tmp_path):
    html = shown(wb.attach(going_on(tmp_path).path))
    assert "digits-cnn: running, 10 of 50 steps." in html
    assert "show it again" in html
    assert cells(html) == ["data=2, 1 thread, 2 ranks", "10 / 50", "10.0 ms", "0.1", "–"]
    with speaking("zh"):
        html = shown(wb.attach(tmp_path))
    assert "digits-cnn：正在运行，已完成 10/50 步。" in html
    assert cells(html)[0] == "data=2，1 个线程, 2 个 rank"


def test_what_broke_is_told_and_nothing_is_html(tmp_path):
    folder = RunFolder.create(tmp_path, "one")
    told = SUMMARY | {"workload": "<b>net", "status": "failed", "error": "Rank 1 <is> gone."}
    folder.finish(told, [step(n) for n in range(1, 3)], [])
    html = shown(wb.attach(folder.path))
    assert "&lt;b&gt;net: failed, 2 of 50 steps." in html
    assert "Rank 1 &lt;is&gt; gone." in html
    assert "show it again" not in html
    assert "<b>net" not in html


def test_a_comparison_has_its_table_and_its_figure(tmp_path):
    document = {
        "machine": {"cores": 2},
        "workload": {"name": "net", "batch_size": 8, "samples": 80, "seed": 0, "dtype": "float32"},
        "status": "done",
        "error": None,
        "progress": {"done_steps": 90, "total_steps": 90},
        "rows": ROWS,
    }
    file = tmp_path / "told.json"
    file.write_text(json.dumps(document))
    html = shown(wb.attach(file))
    assert "net: done, 90 of 90 steps." in html
    assert "Same result as serial" in html
    assert cells(html)[0] == "serial 1 × 1 CPU"
    assert html.count("<svg") == 1
    assert "Measured speedup" in html.partition("<svg")[2]
    assert "Loss at the end" in html.partition("<details>")[2]
    file.write_text(json.dumps(document | {"rows": [], "status": "stopped"}))
    html = shown(wb.attach(file))
    assert "net: stopped" in html
    assert "<table" not in html
