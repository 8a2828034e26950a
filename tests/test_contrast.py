"""Contrast as WCAG 2.2 counts it: 4.5:1 for text, 3:1 for marks, in JupyterLab's light and dark."""

from __future__ import annotations

import re

import pytest
from bokeh.models import Text

from workbench.dashboard import parts
from workbench.ui import figures, look, report, table
from workbench.ui.accuracy_figure import accuracy_chart
from workbench.ui.canvas import GREY, PAPER
from workbench.ui.canvas import INK as STILL_INK
from workbench.ui.drawing import RANKS
from workbench.ui.memory_figure import memory_chart
from workbench.ui.style import STYLE
from workbench.ui.throughput_figure import throughput_chart
from workbench.ui.timeline_figure import timeline_chart

TEXT, MARK = 4.5, 3.0
WHITE, DARK = (255.0, 255.0, 255.0), (17.0, 17.0, 17.0)
THEMES = {"light": ((0.0, 0.0, 0.0), 0.87, WHITE), "dark": (WHITE, 1.0, DARK)}
"""The colour of text with its opacity, and the background, as JupyterLab's themes have them."""

Color = tuple[float, float, float]


def color(code: str) -> Color:
    digits = code.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    red, green, blue = (float(int(digits[n : n + 2], 16)) for n in (0, 2, 4))
    return red, green, blue


def over(top: Color, opacity: float, below: Color) -> Color:
    red, green, blue = (opacity * a + (1 - opacity) * b for a, b in zip(top, below, strict=True))
    return red, green, blue


def luminance(of: Color) -> float:
    parts = [part / 255 for part in of]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def declared(style: str) -> list[tuple[str, str]]:
    """Return properties and values of a style sheet."""
    return re.findall(r"([\w-]+):\s*([^;{}]+?)\s*[;}]", style)


def test_contrast_is_counted_as_the_standard_says():
    assert contrast((0, 0, 0), WHITE) == pytest.approx(21)
    assert contrast(color("#777"), WHITE) == pytest.approx(4.48, abs=0.005)
    assert contrast(color("#767676"), WHITE) == pytest.approx(4.54, abs=0.005)


MARKS = {
    **{f"axis {axis}": style.color for axis, style in look.OF_AXIS.items()},
    "serial": look.SERIAL.color,
    "serial, all threads": look.SERIAL_ALL_THREADS.color,
    "hybrid": look.HYBRID.color,
    **{f"span {span.kind}": span.color for span in look.SPANS},
    **{f"memory {kind}": code for kind, code in look.MEMORY.items()},
    **{f"rank {n}": code for n, code in enumerate(RANKS)},
    "lines": look.INK,
    "lines of stills": GREY,
}


@pytest.mark.parametrize("mark", MARKS)
def test_marks_are_seen_on_white_and_on_dark(mark):
    assert contrast(color(MARKS[mark]), WHITE) >= MARK
    assert contrast(color(MARKS[mark]), DARK) >= MARK


@pytest.mark.parametrize(
    "style", [STYLE, report._STYLE, table.STYLE], ids=["panel", "report", "table"]
)
def test_colours_of_a_style_sheet_are_seen(style):
    """Of text, where there is no theme, on white; of borders and outlines on both backgrounds."""
    seen = 0
    for name, value in declared(style):
        for code in re.findall(r"#[0-9A-Fa-f]{6}\b|#[0-9A-Fa-f]{3}\b(?![0-9A-Fa-f])", value):
            if name == "color" or name.endswith("text-color"):
                assert contrast(color(code), WHITE) >= TEXT, (name, value)
            elif name.startswith(("border", "outline")):
                assert contrast(color(code), WHITE) >= MARK, (name, value)
                assert contrast(color(code), DARK) >= MARK, (name, value)
            else:
                continue
            seen += 1
    assert seen >= (0 if style is table.STYLE else 2)


@pytest.mark.parametrize("theme", THEMES)
def test_text_that_is_fainter_and_text_on_a_problem_are_still_read(theme):
    ink, opacity, page = THEMES[theme]
    fainter = [float(value) for name, value in declared(STYLE) if name == "opacity"]
    assert fainter
    for each in fainter:
        assert contrast(over(ink, each * opacity, page), page) >= TEXT
    [(red, green, blue, share)] = re.findall(
        r"background: rgba\((\d+), (\d+), (\d+), ([\d.]+)\)", STYLE
    )
    behind = over((float(red), float(green), float(blue)), float(share), page)
    assert contrast(over(ink, opacity, behind), behind) >= TEXT


def test_the_report_is_read_in_both_schemes():
    inks = re.findall(r"--(?:ink|soft): (#\w+)", report._STYLE)
    assert len(inks) == 4
    for ink, page in zip(inks, (WHITE, WHITE, DARK, DARK), strict=True):
        assert contrast(color(ink), page) >= TEXT


def test_text_of_dashboard_pages_is_read_on_the_background_of_dask():
    assert contrast(color(parts.INK), color("#fafafa")) >= TEXT


CHARTS = (
    figures.speedup_chart, figures.loss_chart, figures.share_chart, throughput_chart,
    accuracy_chart, timeline_chart, memory_chart,
)  # fmt: skip


@pytest.mark.parametrize("make", CHARTS)
def test_text_in_figures_takes_the_colour_of_the_theme(make):
    """No one colour is read on both backgrounds, so none may stay as it was made."""
    best = (luminance(WHITE) + 0.05) ** 0.5 / (luminance(DARK) + 0.05) ** 0.5
    assert best < TEXT
    fig = make().figure
    drawn = {text.id for text in fig.select({"type": Text})}
    followers = [each for each in fig.js_property_callbacks.get("change:inner_width", [])]
    follows = {glyph.id for each in followers for glyph in each.args.get("texts", ())}
    assert drawn == follows
    for legend in fig.legend:
        [sheet] = legend.stylesheets
        assert "var(--bk-label-text-color" in sheet.css
    for of in ("axis-label-", "major-label-", "label-", ""):
        assert f"--bk-{of}text-color: var(--jp-ui-font-color1, " in STYLE
        assert f"--bk-{of}text-color: var(--ink)" in report._STYLE


def test_text_in_figures_has_the_ink_where_there_is_no_theme():
    """And not the colour of its mark."""
    drawn = [text for make in CHARTS for text in make().figure.select({"type": Text})]
    assert len(drawn) >= 3
    assert {text.text_color for text in drawn} == {look.INK}
    assert contrast(color(look.INK), WHITE) >= TEXT
    assert contrast(color(STILL_INK), color(PAPER)) >= TEXT
