"""Sensitivity: damage of a single selection, of two together, and of methods at the same assignment.

Damage is how much worse than full precision a cell of the same family is: full precision's metric minus the cell's, or the
reverse if lower is better. If all cells have per-item scores over the same items, and the metric is their mean, figures have
a 95% bootstrap interval over items, with the same draws for every cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import WHOLE
from analysis.cells.remarks import defined, warned
from analysis.cells.selections import Choice, any_mixed, choices, mixes_methods
from analysis.measures.frontier import drawn_scores
from analysis.measures.quality import Quality
from mmq_sweeps.identity.assignment import part_order
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.reporting.counts import out_of

TITLES = {
    "alone": "damage of one selection, all else at full precision",
    "pairs": "damage of two parts together, the sum of their damages alone, and the interaction (above zero: worse together)",
    "methods": "methods at the assignments that both have",
}
# Weighted sums of draws in memory at a time.
_AT_ONCE = 500


@dataclass(frozen=True)
class Sensitivity:
    """Tables of a family by a single metric, with a row per comparison; empty if the cells allow none.

    ``alone``: damage of a single part, block group or layer kind, all else at full precision. ``pairs``: damage of two
    parts together, the sum of their damages alone, and the ``interaction`` (above zero: worse together). ``methods``: at
    shared assignments, how much better ``method`` is than ``than`` on average, and how often.
    """

    title: str
    quality: Quality
    full: float
    alone: pd.DataFrame
    pairs: pd.DataFrame
    methods: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        return self.quality.metric

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, by their names in ``TITLES``."""
        return {name: getattr(self, name) for name in TITLES if not getattr(self, name).empty}

    @property
    def whole_alone(self) -> pd.DataFrame:
        """The rows of ``alone`` that quantize a whole part, with a single group size per method and part."""
        rows = self.alone
        for name, everything in WHOLE.items():
            rows = rows[(rows[name] == everything) | rows["part"].isin(list(END_PARTS))] if not rows.empty else rows
        return with_common_groups(rows)


def with_common_groups(alone: pd.DataFrame) -> pd.DataFrame:
    """Filter ``alone`` for the most common group size of each method and part; the method's own size wins a tie."""
    if alone.empty:
        return alone
    common = alone.groupby(["method", "part"])["group"].transform(
        lambda sizes: sizes.value_counts().sort_index().idxmax()
    )
    return alone[alone["group"] == common]


def sensitivities(cells: Cells, metric: str | None = None) -> list[Sensitivity]:
    """Compute the damages of every family. Raises ValueError if none has the metric and a full-precision cell."""
    return cells.each_family(
        lambda title, family: _of_family(title, family, metric or family.first_metric), "no damage can be told"
    )


@dataclass(frozen=True)
class _Measured:
    """Scores ``[cells]``, higher is better, and their bootstrap draws ``[cells, draws]`` if items allow them."""

    figures: np.ndarray
    draws: np.ndarray | None

    def combine(self, several: Sequence[Mapping[int, float]]) -> list[dict[str, float]]:
        """Return weighted sums of the scores of cells (index -> weight), with their intervals if there are draws.

        A few at a time, since one by one would take minutes for thousands, and all at once gigabytes.
        """
        told = [{"value": sum(factor * float(self.figures[index]) for index, factor in one.items())} for one in several]
        if self.draws is None:
            return told
        for start in range(0, len(several), _AT_ONCE):
            block = several[start : start + _AT_ONCE]
            drawn = [sum(factor * self.draws[index] for index, factor in one.items()) for one in block]
            low, high = np.percentile(np.stack(drawn), (2.5, 97.5), axis=1)
            for place in range(len(block)):
                told[start + place] |= {"low": float(low[place]), "high": float(high[place])}
        return told


def _of_family(title: str, family: Cells, metric: str) -> Sensitivity:
    if metric not in family.metrics:
        raise ValueError(f"has no metric {metric!r}")
    if not (family.frame["method"] == "none").any():
        raise ValueError("has no full-precision cell; run method=none")
    quality = Quality.of(family, metric)
    rows = family.frame[family.frame[quality.column].notna()].reset_index(drop=True)
    full = quality.baseline(rows)
    if full is None:
        raise ValueError(f"full precision has no {metric}; measure it again with method=none")
    draws = drawn_scores(family, rows, quality)
    measured = _Measured(quality.score(rows), None if draws is None else np.ascontiguousarray(draws.T))
    selections = [choices(row, family.parts) for row in rows.to_dict("records")]
    by_cell = {
        (method, selection): index
        for index, (method, selection) in enumerate(zip(rows["method"], selections, strict=True))
    }
    notes = [] if draws is not None else ["no intervals: not all cells have per-item scores whose mean is the metric"]
    if len(rows) == (rows["method"] == "none").sum():
        notes.append("no quantized cell: there is no damage to tell; run a sweep over bits")
    notes += [*_left_out(rows, family.parts), *warned(rows, metric), *defined(rows, metric)]
    return Sensitivity(
        title,
        quality,
        float(rows[quality.column][full]),
        pd.DataFrame(_alone(by_cell, measured, full)),
        pd.DataFrame(_pairs(by_cell, measured, full)),
        pd.DataFrame(_methods(by_cell, measured.figures)),
        tuple(notes),
    )


def _left_out(rows: pd.DataFrame, parts: Iterable[str]) -> Iterable[str]:
    """Yield sentences on the cells that say nothing of one selection or of two."""
    several = any_mixed(rows, parts)
    for number, verbs in ((int(several.sum()), SEVERAL), (int(rows["method"].map(mixes_methods).sum()), MIXED)):
        if number:
            yield out_of(number, len(rows), "cell", *verbs)


# Why cells say nothing of a single selection, for one cell and for several.
SEVERAL = (
    "gives the units of a part several bit-widths, or chooses them by number: it is compared between methods only",
    "give the units of a part several bit-widths, or choose them by number: they are compared between methods only",
)
MIXED = (
    "mixes methods: it is no damage of one method, and a method of its own",
    "mix methods: they are no damage of one method, and a method of their own",
)


def _mixed(selection: Iterable[Choice]) -> bool:
    return any(choice.selection for choice in selection)


def _alone(by_cell: Mapping[Any, int], measured: _Measured, full: int) -> list[dict[str, Any]]:
    chosen = [
        (method, next(iter(selection)), index)
        for (method, selection), index in by_cell.items()
        if len(selection) == 1 and not mixes_methods(method) and not _mixed(selection)
    ]
    damages = measured.combine([{full: 1.0, index: -1.0} for _, _, index in chosen])
    order = ("method", "part", "blocks", "layers", "group", "bits")
    found = [
        {name: {"method": method, **one._asdict()}[name] for name in order} | _named(damage, "damage")
        for (method, one, _), damage in zip(chosen, damages, strict=True)
    ]
    return sorted(found, key=lambda row: [part_order(row[name]) if name == "part" else row[name] for name in order])


def _pairs(by_cell: Mapping[Any, int], measured: _Measured, full: int) -> list[dict[str, Any]]:
    chosen, weights = [], []
    for (method, selection), index in by_cell.items():
        if len(selection) != 2 or _mixed(selection):
            continue
        first, second = sorted(selection, key=lambda choice: part_order(choice.part))
        alone = [by_cell.get((method, frozenset([choice]))) for choice in (first, second)]
        if alone[0] is None or alone[1] is None:
            continue
        chosen.append((method, f"{first.label}, {second.label}"))
        weights.append({full: 1.0, index: -1.0})
        # (full - pair) - (full - first) - (full - second)
        weights.append({index: -1.0, full: -1.0, alone[0]: 1.0, alone[1]: 1.0})
    told = measured.combine(weights)
    found = [
        {
            "method": method,
            "parts": parts,
            "together": together["value"],
            "sum": together["value"] - interaction["value"],
            **_named(interaction, "interaction"),
        }
        for (method, parts), together, interaction in zip(chosen, told[::2], told[1::2], strict=True)
    ]
    return sorted(found, key=lambda row: (row["method"], row["parts"]))


def _methods(by_cell: Mapping[Any, int], figures: np.ndarray) -> list[dict[str, Any]]:
    names = sorted({method for method, _ in by_cell} - {"none"})
    found = []
    for method, than in combinations(names, 2):
        shared = [selection for name, selection in by_cell if name == method and (than, selection) in by_cell]
        if shared:
            difference = np.array([figures[by_cell[method, one]] - figures[by_cell[than, one]] for one in shared])
            found.append(
                {
                    "method": method,
                    "than": than,
                    "cells": len(shared),
                    "better_by": float(difference.mean()),
                    "better_in": int((difference > 0).sum()),
                }
            )
    return found


def _named(told: Mapping[str, float], name: str) -> dict[str, float]:
    return {name if key == "value" else key: value for key, value in told.items()}
