"""The report: one file, nothing fetched, nothing unescaped."""

from __future__ import annotations

import re

import pytest
from fake_comparison import FakeComparison

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
