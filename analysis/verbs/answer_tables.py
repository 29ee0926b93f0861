"""Tables of the answers of cells: flips against full precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from analysis.cells.columns import METRIC
from analysis.cells.selections import assignment
from analysis.measures.flips import Flips
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import metric_label, plain_table


def flips_table(one: Flips, frame: pd.DataFrame) -> Table:
    """Build a table of the compared cells, from the most bits to the fewest; ``frame`` is the table of cells."""
    headings = ("bpw", metric_label(one.metric), "flips", "95% interval", *_judged(one))
    table = plain_table(*(f">{name}" for name in headings), "cell")
    for cell, row in _rows(one, frame):
        shares = ["" if pd.isna(cell[name]) else f"{cell[name]:.1%}" for name in ("lost", "gained")]
        interval = f"{cell['flips_low']:.1%} .. {cell['flips_high']:.1%}"
        figures = (_figure(row.get("bpw_paper"), 3), _figure(row.get(f"{METRIC}{one.metric}"), 4))
        table.add_row(*figures, f"{cell['flips']:.1%}", interval, *shares, Text(assignment(row)))
    return table


def flips_lines(one: Flips) -> Iterable[str]:
    """Yield the meaning of the columns of a table of flips, and the cells that it leaves out."""
    if not one.table.empty:
        count = int(one.table["items"].iloc[0])
        worse, better = _judged(one)
        label = metric_label(one.metric)
        turned = (
            f"{label} got worse, and better" if one.graded else "was right and is wrong now, was wrong and is right now"
        )
        share = f"share of {counted(count, 'item')} with another answer than full precision"
        yield f"flips: {share}; {worse}, {better}: of these, {turned}"
    yield from one.notes


def flips_json(one: Flips, frame: pd.DataFrame) -> dict[str, Any]:
    """Return flips as plain values."""
    return {
        "title": one.title,
        "metric": one.metric,
        "full": one.full,
        "graded": one.graded,
        "cells": [
            {"id": cell.name, "assignment": assignment(row), **cell.to_dict()} for cell, row in _rows(one, frame)
        ],
        "notes": list(one.notes),
    }


def _judged(one: Flips) -> tuple[str, str]:
    return ("worse", "better") if one.graded else ("lost", "gained")


def _rows(one: Flips, frame: pd.DataFrame) -> Iterable[tuple[pd.Series, pd.Series]]:
    rows = frame.set_index("id").loc[one.table.index]
    if "bpw_paper" in rows:
        rows = rows.sort_values("bpw_paper", ascending=False, kind="stable")
    for cell_id, row in rows.iterrows():
        yield one.table.loc[cell_id], row


def _figure(value: Any, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"
