"""Tables of searches."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from analysis.load.searches import Search
from analysis.measures.searches import COLUMNS, answer_row
from mmq_sweeps.reporting.table import SIGNIFICANT, WARNED, metric_label, plain_table


def search_table(search: Search) -> Table:
    """Return the answers of a search that has ended as a table."""
    metric = search.content["metric"]
    labels = [metric_label(metric) if name == "value" else name for name in COLUMNS]
    table = plain_table(*(name if name in ("budget", "assignment", "cell") else f">{name}" for name in labels))
    for answer in search.content["answers"]:
        marks = {"value": WARNED * answer["optimistic"]} | {
            column: SIGNIFICANT * bool(answer[name] and answer[name]["significant"])
            for column, name in (("vs uniform", "from_uniform"), ("vs full", "from_full"))
        }
        cells = zip(COLUMNS, answer_row(answer), strict=True)
        table.add_row(*(Text(f"{_told(value)}{marks.get(name, '')}") for name, value in cells))
    return table


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
