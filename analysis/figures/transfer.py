"""Figures of transfer: regret from each model or task to each other, and how alike their sensitivities are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from analysis.figures.plots import Heatmap, Plot
from analysis.measures.transfer import Transfer

# Budgets, and kinds of unit at a bit-width, that one figure can show.
MOST_BUDGETS, MOST_RANKS = 3, 4
TITLES = {
    "transfer-regret": "Best on one model or task, used on another",
    "transfer-rank": "Are the same parts and units sensitive",
}


def transfer_plots(found: Transfer) -> Iterator[Plot]:
    """Yield maps of regret, one a budget, and of rank correlations, one a kind of unit and width.

    Letters stand for models and tasks; a figure's first note says for which.
    """
    pairs = [*found.regrets[["from", "to"]].values.tolist(), *found.correlations[["first", "second"]].values.tolist()]
    sides = sorted({side for pair in pairs for side in pair})
    key = "; ".join(f"{_letter(place)}: {side}" for place, side in enumerate(sides))
    for (name, title), panels in zip(TITLES.items(), (_regrets(found, sides), _ranks(found, sides)), strict=True):
        if panels:
            yield Plot(name, title, panels, (key, *found.notes))


def with_key_drawn(plot: Plot) -> Plot:
    """Return ``plot`` with its key below the first panel, for pictures, which have no notes."""
    first, *rest = plot.panels
    if not isinstance(first, Heatmap):
        return plot
    key = plot.notes[0].replace("; ", "\n")
    return replace(plot, panels=[replace(first, x_label=f"{first.x_label}\n{key}"), *rest])


def _regrets(found: Transfer, sides: Sequence[str]) -> list[Heatmap]:
    """Return a map per budget, of those that compare most pairs."""
    rows = found.regrets[found.regrets["full"] > 0]
    counts = rows["budget"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    maps: list[Heatmap] = []
    for budget in sorted(counts.index[:MOST_BUDGETS]):
        own = rows[rows["budget"] == budget].to_dict("records")
        values = {(row["from"], row["to"]): 100 * row["regret"] / row["full"] for row in own}
        label, title = "regret, % of full precision", f"at most {budget:g} bits"
        maps.append(_map(title, ("used on", "best on"), values, sides, label))
    return maps


def _ranks(found: Transfer, sides: Sequence[str]) -> list[Heatmap]:
    """Return a map per kind of unit and bit-width, the fewest bits first: the median over methods."""
    known = found.correlations.dropna(subset="correlation").sort_values("bits", kind="stable")
    maps: list[Heatmap] = []
    for (kind, bits), rows in list(known.groupby(["of", "bits"], sort=False))[:MOST_RANKS]:
        medians = rows.groupby(["first", "second"])["correlation"].median().to_dict()
        values = medians | {(second, first): value for (first, second), value in medians.items()}
        title, label = f"{kind}, {bits:g} bits", "rank correlation"
        maps.append(_map(title, ("model or task", ""), values, sides, label, higher=True))
    return maps


def _map(
    title: str,
    axes: tuple[str, str],
    values: Mapping[tuple[Any, Any], float],
    sides: Sequence[str],
    label: str,
    higher: bool = False,
) -> Heatmap:
    """Return a map over pairs of sides."""
    letters = [_letter(place) for place in range(len(sides))]
    rows = [[values.get((row, column), math.nan) for column in sides] for row in sides]
    return Heatmap(title, *axes, letters, letters, rows, label, higher=higher)


def _letter(place: int) -> str:
    """Return A to Z, then A1 to Z1, and so on."""
    turn, letter = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(turn) if turn else "")
