"""Files for other programs: tables, traces, and figures drawn without a browser."""

from __future__ import annotations

import csv
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from fake_comparison import FakeComparison, row
from PIL import Image
from test_attaching import going_on, span
from workloads import make

import workbench as wb
from workbench.cli import commands
from workbench.planning import plan
from workbench.ui import look, stills
from workbench.ui.axes import ticks
from workbench.ui.canvas import Svg, hatched, marker
from workbench.ui.form import Request
from workbench.ui.job import Job
from workbench.ui.language import speaking
from workbench.ui.raster import Raster
from workbench.ui.shelf import write
from workbench.ui.training import Training

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def comparison() -> FakeComparison:
    made = FakeComparison()
    made.go_on("done")
    made.rows += [row("data=4", 4, 1, 0.03), row("tensor=2", 2, 1, 0.05, speedup=None)]
    for number, run in enumerate(made.runs):
        run.folder = Path(f"run-{number}")
    made.timelines = {"data=2, 1 thread": [span(rank, n) for rank in (0, 1) for n in range(5)]}
    return made


def words(svg: str) -> list[str]:
    """Return all that is written in an SVG image."""
    return [str(node.text) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_folder_gets_everything(comparison: FakeComparison, tmp_path: Path) -> None:
    written = wb.export(comparison, tmp_path / "new" / "all")
    figures = [f"{name}.{kind}" for name in stills._FIGURES for kind in ("svg", "png")]
    tables = ["table.csv", "steps.csv", "table.json", "trace.json", "report.html"]
    assert sorted(path.name for path in written) == sorted(figures + tables)
    assert all(path.stat().st_size > 100 for path in written)
    assert "trace.json" not in [
        path.name for path in wb.export(SimpleNamespace(**{**vars(comparison), "timelines": {},
                                        "to_json": comparison.to_json}), tmp_path)
    ]  # fmt: skip


def test_the_table_and_the_steps(comparison: FakeComparison, tmp_path: Path) -> None:
    [path] = wb.export(comparison, tmp_path / "t.csv")
    with path.open() as file:
        table = list(csv.DictReader(file))
    assert [line["strategy"] for line in table] == [r["strategy"] for r in comparison.rows]
    assert [float(line["step_s"]) for line in table] == [r["step_s"] for r in comparison.rows]
    [path] = wb.export(comparison, tmp_path / "t.steps.csv")
    with path.open() as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == sum(len(run.history) for run in comparison.runs)
    assert {line["run"] for line in steps} == {"run-0", "run-1", "run-2"}
    assert float(steps[0]["loss"]) == comparison.runs[0].history[0]["loss"]


def test_what_is_drawn_is_written_too(comparison: FakeComparison) -> None:
    svg = stills.svg(comparison)
    told = words(svg)
    for part in (
        "Measured speedup (higher is better)", "speedup over 1 thread", "serial", "data=2 2.00×",
        "data=4 2.67×", "Amdahl's law: data, 12 % serial", "Measured loss (lower is better)",
        "training time (s)", "80.0 ms", "rank 1",
    ):  # fmt: skip
        assert part in told, told
    assert "<script" not in svg
    assert "net &lt;script&gt;alert(1)" in svg
    with speaking("zh"):
        assert "实测加速比（越高越好）" in words(stills.svg(comparison))


def test_png_is_the_same_picture(comparison: FakeComparison) -> None:
    image = Image.open(BytesIO(stills.png(comparison)))
    root = ElementTree.fromstring(stills.svg(comparison))
    assert image.size == (2 * float(root.attrib["width"]), 2 * float(root.attrib["height"]))
    found = {color for _, color in image.getcolors(1 << 24)}  # type: ignore[union-attr]
    for color in (look.OF_AXIS["data"].color, *(s.color for s in look.SPANS[:4])):
        assert tuple(bytes.fromhex(color[1:])) in found


def test_nothing_is_drawn_outside(comparison: FakeComparison) -> None:
    """Of long names and many rows either."""
    comparison.rows = [
        *comparison.rows,
        *(row(f"sharded={n},pipeline=2", 2 * n, 1, 0.08 / n**0.8) for n in range(2, 9)),
    ]
    comparison.rows += [row(f"tensor={n},data=2", 4, 1, 0.05 + n / 100) for n in range(2, 7)]
    assert {"tensor=6,data=2 0.73×", "tensor=2,data=2 1.14×"} <= set(words(stills.svg(comparison)))
    root = ElementTree.fromstring(stills.svg(comparison))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for node in root.iter():
        for point in node.attrib.get("points", "").split():
            x, y = map(float, point.split(","))
            assert -1 <= x <= width + 1, node.attrib
            assert -1 <= y <= height + 1, node.attrib


@pytest.mark.parametrize(
    "kind",
    [*(s.marker for s in (*look.OF_AXIS.values(), look.HYBRID)), *look.OF_PAIR.values()],
)
@pytest.mark.parametrize(
    "dash",
    [
        *(s.dash for s in look.OF_AXIS.values()),
        *(d for d, _ in look.OF_DEGREE.values()),
        look.HIGHER[0],
        *look.OF_GREATER.values(),
        look.OF_MORE[0],
    ],
)
def test_every_look_can_be_drawn(kind: str, dash: str) -> None:
    raster = Raster(20, 20, "")
    for canvas in (Svg(20, 20, ""), raster):
        blank = canvas.png() if canvas is raster else canvas.document()
        marker(canvas, kind, 10, 10, 8, "#0072B2", 0.5)
        assert (canvas.png() if canvas is raster else canvas.document()) != blank
        canvas.line([(0, 0), (20, 20)], "#0072B2", 2, dash)
        for one in look.SPANS:
            hatched(canvas, 0, 0, 20, 20, one.color, one.hatch)
    assert raster.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 4.6, [0, 1, 2, 3, 4]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (1990, 2010, [1990, 1995, 2000, 2005, 2010]),
        (3, 3, [3]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, whole=high > 4) == pytest.approx(expected)


def test_a_trace_opens_in_a_viewer(comparison: FakeComparison, tmp_path: Path) -> None:
    [path] = wb.export(comparison, tmp_path / "a.trace.json")
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 10


def test_a_run_by_its_folder(tmp_path: Path) -> None:
    folder = going_on(tmp_path).path
    names = {path.name for path in wb.export(folder, tmp_path / "out")}
    assert {"table.csv", "steps.csv", "trace.json", "loss.svg", "share.png"} <= names
    assert not {"speedup.svg"} & names  # there is nothing to compare with
    answer = CliRunner().invoke(
        commands, ["export", str(tmp_path), str(tmp_path / "f.svg"), str(tmp_path / "s.steps.csv")]
    )
    assert answer.exit_code == 0, answer.output
    assert answer.output.split() == [str(tmp_path / "f.svg"), str(tmp_path / "s.steps.csv")]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.gif", r"has no ending that can be written; there are: .steps.csv, .csv, .trace.json"),
        ("a.svg", "nothing to draw yet"),
        ("a.csv", "no rows yet"),
        ("a.steps.csv", "no steps to write"),
        ("a.trace.json", "no spans to write: they are recorded with spans=True"),
        ("file/a.json", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").touch()
    empty: Any = FakeComparison()
    with pytest.raises(wb.PlanError, match=says):
        wb.export(empty, tmp_path / name)


def test_the_cut_is_a_picture_of_its_own(comparison: FakeComparison, tmp_path: Path) -> None:
    comparison.runs[-1].plan = plan(make(), "data=2")
    written = {path.name: path for path in wb.export(comparison, tmp_path)}
    root = ElementTree.parse(written["cut.data=2.svg"]).getroot()
    assert root.tag == f"{SVG}svg"
    assert any("rank 1" in (each.text or "") for each in root.iter(f"{SVG}text"))


def test_all_that_train_has_made_is_exported(tmp_path: Path) -> None:
    class Trained(Training):
        def __init__(self, segments: tuple[Any, ...]) -> None:
            self.segments = segments

    runs = [wb.attach(going_on(tmp_path / "runs", name).path) for name in ("a", "b")]
    asked = Request("", (), 1, 1, 1)
    said = write(Job(1, asked, "train", going=Trained(tuple(runs))), str(tmp_path / "out"))
    names = {path.relative_to(tmp_path / "out").parts[0] for path in tmp_path.glob("out/*/*")}
    assert len(names) == 2, said()
    assert {name.partition("-")[0] for name in names} == {"1", "2"}
    assert str(tmp_path / "out") in said()
