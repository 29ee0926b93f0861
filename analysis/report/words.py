"""The page's sentences: each a finding with its figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.cells import METRIC, Cells, assignment
from analysis.family import Family
from analysis.frontier import Frontier
from analysis.importance import Importance
from analysis.sensitivity import WHOLE, Sensitivity
from mmq_sweeps.table import METRIC_LABELS

KEEP = 0.98
BUDGETS = (8.0, 6.0, 4.0)


def label(metric: str) -> str:
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def of_frontier(one: Frontier) -> Iterator[str]:
    """How many cells there are, what full precision scores, and what is kept of it in how few bits."""
    methods = sorted(set(one.cells["method"]) - {"none"})
    named = f" of {', '.join(methods)}" if methods else ""
    yield f"{count(len(one.cells), 'finished cell')}{named}; {len(one.rows)} on the frontier of {label(one.metric)} and bits."
    if one.full is None:
        yield "There is no cell at full precision, so what is kept of it is not known: run method=none."
    else:
        yield f"Full precision scores {label(one.metric)} {one.full:.4f}."
        smallest = one.smallest_within(KEEP)
        if smallest is None or smallest["method"] == "none":
            yield f"No quantized cell keeps {KEEP:.0%} of it."
        else:
            kept = smallest[f"{METRIC}{one.metric}"] / one.full if one.full else float("nan")
            yield (
                f"The fewest bits that keep {KEEP:.0%} of it are {smallest[one.bpw]:.2f} a weight: "
                f"{assignment(smallest)}, which keeps {kept:.1%}."
            )
    told: dict[str, tuple[float, pd.Series]] = {}
    for budget in BUDGETS:
        best = within(one, budget)
        if best is not None and best["method"] != "none":
            told[best["id"]] = budget, best  # Of the budgets that one cell is the best within, the smallest is told.
    for budget, best in told.values():
        figure = best[f"{METRIC}{one.metric}"]
        share = f" ({figure / one.full:.1%} of full precision)" if one.full else ""
        yield f"The best within {budget:g} bits a weight is {assignment(best)}: {label(one.metric)} {figure:.4f}{share}."


def within(one: Frontier, budget: float) -> pd.Series | None:
    """The best cell of at most ``budget`` bits per weight."""
    rows = one.rows[one.rows[one.bpw] <= budget]
    return None if rows.empty else rows.loc[rows[f"{METRIC}{one.metric}"].idxmax()]


def sentence(text: str) -> str:
    """``text`` with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def method_of(one: Importance) -> str:
    return one.title.rsplit(", ", 1)[1]


def of_importance(one: Importance) -> Iterator[str]:
    shares = ", ".join(
        f"{part} {row['mean']:.1f} ({row['low']:.1f} to {row['high']:.1f})" for part, row in one.table.iterrows()
    )
    yield (
        f"{method_of(one)}: of 100, {shares}; over {count(one.count, 'cell')}, of whose variation the forest explains "
        f"{one.fit:.0%} where it has not seen them."
    )


def of_sensitivity(one: Sensitivity) -> Iterator[str]:
    """Which part costs most by itself at the fewest bits that all have, and how methods compare."""
    whole = one.alone
    for name, everything in WHOLE.items():
        whole = whole[whole[name] == everything] if not whole.empty else whole
    for method, rows in whole.groupby("method") if not whole.empty else ():
        shared = set.intersection(*(set(of_part["bits"]) for _, of_part in rows.groupby("part")))
        if not shared or rows["part"].nunique() < 2:
            continue
        here = rows[rows["bits"] == min(shared)].sort_values("damage", ascending=False)
        told = ", ".join(f"{part} {damage:.4f}" for part, damage in zip(here["part"], here["damage"], strict=True))
        yield f"{method} at {min(shared)} bits of one part alone costs {label(one.metric)}: {told}."
    if not one.pairs.empty:
        together, alone = one.pairs["together"].mean(), one.pairs["sum"].mean()
        worse = int((one.pairs["interaction"] > 0).sum())
        yield (
            f"Two parts together cost {together:.4f} on average, against {alone:.4f} for the sum of each alone; "
            f"worse together in {worse} of {count(len(one.pairs), 'pair')}."
        )
    for _, row in one.methods.iterrows():
        yield (
            f"{row['method']} scores {abs(row['higher_by']):.4f} {'higher' if row['higher_by'] >= 0 else 'lower'} than "
            f"{row['than']} on average at the same bits, higher in {row['higher_in']} of {count(row['cells'], 'assignment')}."
        )


def of_cells(cells: Cells) -> str:
    done = int((cells.frame["status"] == "done").sum())
    failed = len(cells.frame) - done
    told = f"{count(done, 'finished cell')}" + (f" and {count(failed, 'failed one')}" if failed else "")
    models = cells.frame.groupby(["model", "task"]).ngroups
    return f"{told}, {count(models, 'pair')} of model and task."


def of_family(family: Family, one: Frontier) -> list[str]:
    """The summary of a family."""
    lines = list(of_frontier(one))
    found, _ = family.importance
    for importance in found:
        lines.append("Importance, " + next(of_importance(importance)))
        lines += [f"Doubtful: {warning}." for warning in importance.warnings]
    if family.sensitivity is not None:
        lines += list(of_sensitivity(family.sensitivity))
    return lines
