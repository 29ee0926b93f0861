"""Section of the report on what one model or task says of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from analysis.cells import Cells
from analysis.figures.transfer import transfer_plots
from analysis.measures.transfer import Transfer, transfer
from analysis.output import plain
from analysis.report.blocks import Block, Column, Section, Sentences, Table

TITLE = "Transfer between models and tasks"
_REGRETS: Mapping[str, int | None] = {
    "from": None, "to": None, "metric": None, "budget": 1, "assignments": 0, "regret": 4, "low": 4, "high": 4,
    "by_chance": 4, "chosen": None, "best": None,
}  # fmt: skip
_CORRELATIONS: Mapping[str, int | None] = {
    "first": None, "second": None, "method": None, "of": None, "bits": 0, "units": 0, "correlation": 2, "low": 2, "high": 2,
}  # fmt: skip


def transfer_section(cells: Cells, metric: str | None = None) -> Section | None:
    """Return the section; None if there are no two models or tasks, or nothing of them can be compared."""
    try:
        found = transfer(cells, metric)
    except ValueError:
        return None
    blocks: list[Block] = [Sentences(_sentences(found))]
    # The sentences have the other notes.
    blocks += [replace(plot, notes=plot.notes[:1]) for plot in transfer_plots(found)]
    if not found.regrets.empty:
        blocks.append(_table("best on one, used on another", found.regrets, _REGRETS))
    if not found.correlations.empty:
        blocks.append(_table("rank correlation of damages", found.correlations, _CORRELATIONS))
    return Section(TITLE, blocks)


def _sentences(found: Transfer) -> list[str]:
    told = []
    if not found.regrets.empty:
        rows = found.regrets
        same, significant = int((rows["chosen"] == rows["best"]).sum()), int((rows["low"] > 0).sum())
        told.append(
            f"In {same} of {len(rows)} comparisons within a budget, the assignment that is best on one model or task is best "
            f"on the other too; in {significant} it is significantly worse than the other's own best. The regret is how much "
            "worse, by chance that of the mean assignment measured in both."
        )
    if not found.correlations.empty:
        value = found.correlations["correlation"].median()
        told.append(f"The median rank correlation of damages by part and unit is {value:.2f}.")
    return [*told, *found.notes]


def _table(name: str, rows: pd.DataFrame, digits: Mapping[str, int | None]) -> Table:
    columns = [Column(column.replace("_", " "), places) for column, places in digits.items()]
    return Table(name, columns, [[plain(row[column]) for column in digits] for _, row in rows.iterrows()])
