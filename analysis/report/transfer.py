"""Build the report's section on how well one model or task predicts another."""

from __future__ import annotations

from dataclasses import replace

from analysis.cells import Cells
from analysis.figures.transfer import transfer_plots
from analysis.measures.transfer import Transfer, transfer
from analysis.report.blocks import Block, Section, Sentences, table_of

TITLE = "Transfer between models and tasks"
_REGRETS = (
    "from", "to", "metric", "budget", "assignments", "regret", "low", "high", "by_chance", "chosen", "best",
)  # fmt: skip
_DIGITS = {"bits": 0, "correlation": 2, "low": 2, "high": 2}


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
        blocks.append(table_of("best on one, used on another", found.regrets[list(_REGRETS)], {"budget": 1}))
    if not found.correlations.empty:
        blocks.append(table_of("rank correlation of damages", found.correlations, _DIGITS))
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
