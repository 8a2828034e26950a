"""What an epoch costs, as an HTML table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from workbench.ui import table, texts
from workbench.ui.language import text
from workbench.ui.texts import Row


def cost_table(rows: Sequence[Row]) -> str:
    """Return seconds, core-seconds and, where there is a price, money per epoch; text is escaped.

    Empty without rows, or with those of an older version, which did not count that.
    """
    rows = [row for row in rows if row.get("epoch_s") is not None]
    if not rows:
        return ""
    priced = any(row["price_per_epoch"] is not None for row in rows)
    several = len({row.get("run") for row in rows}) > 1
    names = ["cost.strategy", "cost.epoch", "cost.core_s", "cost.speedup"]
    names = [*(["table.run"] if several else []), *names, *(["cost.money"] if priced else [])]
    head = "".join(f'<th scope="col">{escape(text(name))}</th>' for name in names)
    body = ""
    for row in rows:
        speedup = "–" if row["speedup"] is None else f"{row['speedup']:.2f}×"
        cells = [f"{row['epoch_s']:.3g}", f"{row['core_s_per_epoch']:.3g}", speedup]
        cells += [_price(row["price_per_epoch"])] if priced else []
        run = [escape(str(row.get("run", "")))] if several else []
        told = "".join(f"<td>{cell}</td>" for cell in (*run, escape(texts.row_label(row)), *cells))
        body += f"<tr>{told}</tr>"
    return (
        f'{table.SCROLL}<table class="wb-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _price(price: float | None) -> str:
    return "–" if price is None else f"{price:.2f}" if price >= 1 else f"{price:.3g}"


def costs(rows: Sequence[Row]) -> str:
    """Return the table under a heading, with what the numbers are; empty as that is."""
    found = cost_table(rows)
    title, about = escape(text("cost.title")), escape(text("cost.about"))
    return f'<h4>{title}</h4><p class="wb-hint">{about}</p>{found}' if found else ""
