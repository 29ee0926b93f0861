"""Output of the verb ``transfer``: regrets and rank correlations, as tables and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from analysis.measures.transfer import Transfer
from mmq_sweeps.reporting.table import metric_label, plain_table


def regret_tables(found: Transfer) -> Iterator[tuple[str, Table]]:
    """Yield a heading and a table per ordered pair of families."""
    for (source, target), rows in found.regrets.groupby(["from", "to"], sort=False):
        metric, full = rows["metric"].iloc[0], rows["full"].iloc[0]
        known = "" if pd.isna(full) else f", full precision {full:.4f}"
        label = metric_label(metric)
        yield f"best on {source}, used on {target} ({label}{known})", _regrets(rows)


def _regrets(rows: pd.DataFrame) -> Table:
    table = plain_table(">max bpw", ">of", ">regret", ">95% interval", ">by chance", "chosen", "best")
    for _, row in rows.iterrows():
        best = "the same" if row["best"] == row["chosen"] else row["best"]
        figures = (f"{row['budget']:g}", str(row["assignments"]), f"{row['regret']:.4f}", _interval(row, 4))
        table.add_row(*figures, f"{row['by_chance']:.4f}", Text(row["chosen"]), Text(best))
    return table


def correlation_tables(found: Transfer) -> Iterator[tuple[str, Table]]:
    """Yield the heading and the table of the rank correlations, if there are any."""
    if found.correlations.empty:
        return
    table = plain_table("of", ">bits", ">units", ">correlation", ">95% interval", "method", "first", "second")
    for _, row in found.correlations.iterrows():
        value = "none" if pd.isna(row["correlation"]) else f"{row['correlation']:.2f}"
        figures = (row["of"], f"{row['bits']:g}", str(row["units"]), value, _interval(row, 2))
        table.add_row(*figures, *(Text(row[name]) for name in ("method", "first", "second")))
    yield "rank correlation (Spearman) of the damage of parts and units quantized alone", table


def transfer_json(found: Transfer) -> dict[str, Any]:
    """Return a transfer as plain values."""
    return {
        "regrets": found.regrets.to_dict("records"),
        "correlations": found.correlations.to_dict("records"),
        "notes": list(found.notes),
    }


def _interval(row: pd.Series, digits: int) -> str:
    return "" if pd.isna(row["low"]) else f"{row['low']:.{digits}f} .. {row['high']:.{digits}f}"
