"""The report: one file, nothing fetched, nothing unescaped."""

from __future__ import annotations

import re

import pytest
from fake_comparison import FakeComparison
from workloads import make

from workbench.planning import plan
from workbench.ui.language import speaking
from workbench.ui.report import write_report


@pytest.fixture
def comparison():
    made = FakeComparison()
    made.go_on("done")
    return made


def test_the_report_is_one_file_that_fetches_nothing(comparison, tmp_path):
    path = write_report(comparison, tmp_path / "new" / "report.html")
    page = path.read_text()
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']https?:""", page)
    assert "wb-speedup" in page
    assert "Same result as serial: data=2 differs by at most 2e-15" in page
    assert "All repeats were finished." in page


def test_what_users_write_is_escaped(comparison, tmp_path):
    comparison.error = RuntimeError("<img src=x onerror=alert(2)>")
    comparison.status = "failed"
    page = write_report(comparison, tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "a &lt;fast&gt; CPU" in page
    assert "<img" not in page


def test_a_report_of_nothing_measured_yet_is_a_page_too(tmp_path):
    page = write_report(FakeComparison(), tmp_path / "report.html").read_text()
    assert "was not finished (status: running)" in page


def test_the_report_has_every_figure_and_the_cut(comparison, tmp_path):
    comparison.runs[-1].plan = plan(make(), "data=2")
    for run in comparison.runs:
        run.history[3]["accuracy"] = 0.5
    page = write_report(comparison, tmp_path / "report.html").read_text()
    for name in ("speedup", "loss", "throughput", "accuracy", "share", "memory"):
        assert f"wb-{name}" in page, name
    assert page.count('<svg class="wb-layer"') == 1
    assert "<h3>data=2</h3>" in page
    assert "Its weight: whole: ranks 0, 1" in page
    bare = FakeComparison()
    bare.go_on("done")
    assert "wb-layer" not in write_report(bare, tmp_path / "bare.html").read_text()
    assert "wb-timeline" not in page


def test_the_report_speaks_chinese(comparison, tmp_path):
    comparison.status = "stopped"
    with speaking("zh"):
        page = write_report(comparison, tmp_path / "report.html").read_text()
    facts = re.findall(r"<dt>(.*?)</dt>", page)
    assert facts
    assert not [fact for fact in facts if not re.search("[\u4e00-\u9fff]", fact)]
    assert "stopped" not in page.partition("<h1>")[2].partition("<h2>")[0]
