"""Phrase the page's sentences: each a finding with its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.cells import WARNINGS, Cells, assignment
from analysis.measures.family import Family
from analysis.measures.frontier import Frontier
from analysis.measures.importance import Importance
from analysis.measures.sensitivity import Sensitivity
from mmq_sweeps.reporting.table import METRIC_LABELS, WARNED

KEEP = 0.98
BUDGETS = (8.0, 6.0, 4.0)


def label(metric: str) -> str:
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def of_frontier(one: Frontier) -> Iterator[str]:
    """Describe a frontier: number of cells, full precision's score, the smallest cell near it, the best per budget."""
    methods = sorted(set(one.cells["method"]) - {"none"})
    named = f" of {', '.join(methods)}" if methods else ""
    yield f"{count(len(one.cells), 'finished cell')}{named}; {len(one.rows)} on the frontier of {label(one.metric)} and bits."
    if one.full is None:
        yield "There is no cell at full precision, so what is kept of it is not known: run method=none."
    else:
        yield f"Full precision scores {one.quality.label} {one.full:.4f}."
        yield from _kept(one, one.full)
    told: dict[str, tuple[float, pd.Series]] = {}
    for budget in BUDGETS:
        best = one.best_within(budget)
        if best is not None and best["method"] != "none":
            told[best["id"]] = budget, best  # If a cell is best within several budgets, report the smallest.
    for budget, best in told.values():
        figure = best[one.quality.column]
        share = one.quality.against(figure, one.full)
        against = f" ({share})" if share else ""
        yield (
            f"The best within {budget:g} bits a weight is {assignment(best)}: {one.quality.label} {figure:.4f}{against}."
            f"{warned(best, one.metric)}"
        )


def _kept(one: Frontier, full: float) -> Iterator[str]:
    """Describe the smallest cell that keeps ``KEEP`` of full precision; nothing if the share is undefined."""
    limit, smallest = one.quality.limit(full, KEEP), one.smallest_within(KEEP)
    if limit is None:
        return
    asked = f"keep {KEEP:.0%} of it" if one.quality.higher else f"stay within {limit:.4f}, its figure / {KEEP:g},"
    if smallest is None or smallest["method"] == "none":
        yield (
            f"No quantized cell does {asked}."
            if not one.quality.higher
            else f"No quantized cell keeps {KEEP:.0%} of it."
        )
        return
    figure = smallest[one.quality.column]
    yield (
        f"The fewest bits that {asked} are {smallest[one.bpw]:.2f} a weight: {assignment(smallest)}, "
        f"{one.quality.label} {figure:.4f} ({one.quality.against(figure, full)}).{warned(smallest, one.metric)}"
    )


def warned(row: pd.Series, metric: str) -> str:
    """Format the warnings about a cell's metric, to append to a sentence on it."""
    told = row.get(f"{WARNINGS}{metric}")
    return f" {WARNED} {told}".replace("\n", "; ") if isinstance(told, str) else ""


def sentence(text: str) -> str:
    """Add a capital and a full stop to ``text``."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def of_importance(one: Importance) -> Iterator[str]:
    shares = ", ".join(
        f"{part} {row['mean']:.1f}" + ("" if pd.isna(row["low"]) else f" ({row['low']:.1f} to {row['high']:.1f})")
        for part, row in one.table.iterrows()
    )
    yield (
        f"{one.method}: of 100, {shares}; over {count(one.count, 'cell')}, of whose variation the forest explains "
        f"{one.fit:.0%} where it has not seen them."
    )


def of_sensitivity(one: Sensitivity) -> Iterator[str]:
    """Describe the damage of each part alone at the fewest bits that all parts have, of pairs, and between methods."""
    whole = one.whole_alone
    for method, rows in whole.groupby("method") if not whole.empty else ():
        shared = set.intersection(*(set(of_part["bits"]) for _, of_part in rows.groupby("part")))
        if not shared or rows["part"].nunique() < 2:
            continue
        here = rows[rows["bits"] == min(shared)].sort_values("damage", ascending=False)
        told = ", ".join(f"{part} {damage:.4f}" for part, damage in zip(here["part"], here["damage"], strict=True))
        yield f"{method} at {min(shared)} bits of one part alone costs {one.quality.label}: {told}."
    for method, pairs in one.pairs.groupby("method") if not one.pairs.empty else ():
        together, alone = pairs["together"].mean(), pairs["sum"].mean()
        worse = int((pairs["interaction"] > 0).sum())
        yield (
            f"{method} in two parts together costs {together:.4f} on average, against {alone:.4f} for the sum of each alone; "
            f"worse together in {worse} of {count(len(pairs), 'pair')}."
        )
    for _, row in one.methods.iterrows():
        by = f"{abs(row['better_by']):.4f} {'better' if row['better_by'] > 0 else 'worse'} than"
        yield (
            f"{row['method']} scores {by if row['better_by'] else 'the same as'} {row['than']} on average at the same bits, "
            f"better in {row['better_in']} of {count(row['cells'], 'assignment')}."
        )


def of_cells(cells: Cells) -> str:
    done = int((cells.frame["status"] == "done").sum())
    failed = len(cells.frame) - done
    told = f"{count(done, 'finished cell')}" + (f" and {count(failed, 'failed one')}" if failed else "")
    models = cells.frame.groupby(["model", "task"]).ngroups
    return f"{told}, {count(models, 'pair')} of model and task."


def of_family(family: Family, one: Frontier) -> list[str]:
    """Summarize a family: frontier, importance, sensitivity."""
    lines = list(of_frontier(one))
    found, _ = family.importance
    for importance in found:
        lines.append("Importance, " + next(of_importance(importance)))
        lines += [f"Doubtful: {warning}." for warning in importance.warnings]
    if family.sensitivity is not None:
        lines += list(of_sensitivity(family.sensitivity))
    return lines
