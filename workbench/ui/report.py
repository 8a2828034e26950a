"""One self-contained HTML file of a comparison: it opens anywhere, with the network off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources

from workbench import machine
from workbench.amdahl import fits
from workbench.findings import findings
from workbench.plan import Plan, in_binary_units
from workbench.timeline import timeline_of
from workbench.ui import figures, table, texts
from workbench.ui.accuracy_figure import accuracy_chart, accuracy_columns
from workbench.ui.chart import Chart
from workbench.ui.costs import cost_table
from workbench.ui.cut_table import cut_columns
from workbench.ui.figure_table import data_table
from workbench.ui.language import current, known, text, translate
from workbench.ui.layer_picture import picture
from workbench.ui.memory_figure import memory_chart, memory_columns, memory_of_runs
from workbench.ui.throughput_figure import throughput_chart, throughput_columns
from workbench.ui.timeline_figure import timeline_chart, timeline_columns
from workbench.ui.why_table import why_table, with_bubbles

BOKEH = Resources(mode="inline", components=["bokeh"])
"""Only the part of BokehJS that our figures need, written into the page itself."""

WIDE = ("share", "timeline", "memory")
"""Figures that take the whole width."""

ALWAYS = ("speedup", "loss", "share")
"""Figures that say so where nothing was measured yet."""

_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #555; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --soft: #bbb; } }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  color: var(--ink); max-width: 1220px; margin: 0 auto; padding: 24px;
  --bk-axis-label-text-color: var(--ink); --bk-major-label-text-color: var(--ink);
  --bk-label-text-color: var(--ink); --bk-text-color: var(--ink); }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 32px 0 8px; }
p { margin: 6px 0; max-width: 75ch; } .soft { color: var(--soft); }
.badge { display: inline-block; font-weight: 600; padding: 4px 12px; border-radius: 6px;
  border: 2px solid; }
.badge.yes { border-color: #009E73; } .badge.no { border-color: #D55E00; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 16px; } .figures .wide { grid-column: 1 / -1; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; }
dt { font-weight: 600; } dd { margin: 0; }
"""
    + table.STYLE
)


def write_report(comparison: Any, path: str | Path) -> Path:
    """Write the report of ``comparison`` to ``path`` and return the path.

    The comparison may still be going on, or may have been stopped: the report says so, and shows
    what was measured. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_html(comparison), encoding="utf-8")
    return path


def report_html(comparison: Any) -> str:
    """Return the report of a comparison as one HTML page; text from users is escaped."""
    facts = comparison.to_json()
    rows = list(comparison.rows)
    name = str(facts["workload"].get("name", "workload"))
    charts = list(_charts(comparison, rows))
    script, places = components({chart.name: chart.figure for chart in charts})
    state, same = texts.badge(rows)
    drawn = "".join(
        f'<figure class="{"wide" if chart.name in WIDE else ""}">{places[chart.name]}'
        f"<figcaption>{escape(text(f'figure.{chart.name}.how'))}</figcaption></figure>"
        for chart in charts
    )
    cores = facts["machine"].get("cores") or machine.cores()
    told = [*findings(rows, cores), *(fit.sentence for fit in fits(rows))]
    sentences = "".join(f"<p>{escape(translate(sentence))}</p>" for sentence in told)
    title = escape(text("report.title", name=name))
    return f"""<!DOCTYPE html>
<html lang="{current()}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
{BOKEH.render()}
{script}
</head>
<body>
<h1>{title}</h1>
<p class="soft">{escape(text("report.measured"))} {_state(comparison)}</p>
<p class="badge {state}">{escape(same)}</p>
{sentences}
<h2>{escape(text("report.rows"))}</h2>
{table.rows_table(rows)}
<p class="soft">{escape(text("report.about_rows"))}</p>
{why_table(with_bubbles(rows, comparison.bubbles), cores)}
{table.details_table(rows)}
<p class="soft">{escape(text("report.about_details"))}</p>
{_cost(rows)}
<h2>{escape(text("report.figures"))}</h2>
<div class="figures">{drawn}</div>
{_cuts(comparison)}
<h2>{escape(text("control.workload"))}</h2>
{_facts(facts["workload"])}
<h2>{escape(text("report.machine"))}</h2>
{_facts(facts["machine"])}
</body>
</html>
"""


def _charts(comparison: Any, rows: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the figures; those of which nothing was measured are left out, but for the first."""
    curves = figures.curves_of(comparison)
    timed = [run for run in comparison.runs if run.work is comparison.work]
    drawn = (
        (figures.speedup_chart(), figures.speedup_columns(rows)),
        (figures.loss_chart(), figures.loss_columns(curves)),
        (throughput_chart(), throughput_columns(curves)),
        (accuracy_chart(), accuracy_columns(curves)),
        (figures.share_chart(), figures.share_columns(rows)),
        (timeline_chart(), timeline_columns(timeline_of(comparison.timelines))),
        (memory_chart(), memory_columns(memory_of_runs(timed)())),
    )
    for chart, columns in drawn:
        if chart.name in ALWAYS or columns["label"]:
            chart.draw(columns)
            yield chart


def _cuts(comparison: Any) -> str:
    """Return the picture of one layer for each strategy whose plan is at hand."""
    plans = plans_of(comparison)
    if not plans:
        return ""
    drawn = "".join(
        f"<h3>{escape(plan.strategy)}</h3>{picture(plan).svg}"
        f"<details><summary>{escape(text('about.data'))}</summary>"
        f"{data_table('cut', cut_columns(plan))}</details>"
        for plan in plans
    )
    how = escape(text("figure.cut.how"))
    return f'<h2>{escape(text("plan.title"))}</h2><p class="soft">{how}</p>{drawn}'


def plans_of(comparison: Any) -> list[Plan]:
    """Return the plans of the strategies with several ranks, each once.

    There are none of what was read back: a plan is not written to its folder.
    """
    found = {
        run.plan.strategy: run.plan
        for run in comparison.runs
        if isinstance(run.plan, Plan) and run.plan.ranks > 1
    }
    return list(found.values())


def _cost(rows: Sequence[Mapping[str, Any]]) -> str:
    costs = cost_table(rows)
    return (
        f"<h2>{escape(text('cost.title'))}</h2>{costs}"
        f'<p class="soft">{escape(text("cost.about"))}</p>'
        if costs
        else ""
    )


def _state(comparison: Any) -> str:
    if comparison.status == "done":
        return escape(text("report.done"))
    if comparison.error is not None:
        return escape(text("report.failed", error=translate(str(comparison.error))))
    key = f"report.status.{comparison.status}"
    status = text(key) if known(key) else comparison.status
    return escape(text("report.unfinished", status=status))


def _facts(facts: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<dt>{escape(_named(str(name)))}</dt><dd>{escape(_text(name, value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{lines}</dl>"


def _named(fact: str) -> str:
    return text(f"fact.{fact}") if known(f"fact.{fact}") else fact.replace("_", " ")


def _text(name: str, value: Any) -> str:
    """Return a fact as people read it; nested values on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(key, item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_text(name, item) for item in value) or text("report.none")
    if name.endswith("bytes") and isinstance(value, int | float):
        return in_binary_units(value)
    return "–" if value is None else str(value)
