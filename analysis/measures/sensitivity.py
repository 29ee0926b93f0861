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
from analysis.cells.columns import BITS, METRIC, SELECTION, WHOLE
from analysis.cells.remarks import defined, warned
from analysis.cells.selections import choice, mixed, mixes_methods
from analysis.measures.frontier import resampled_means
from analysis.measures.quality import Quality
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS, part_order
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
    done = cells.of(cells.frame[cells.frame["status"] == "done"])
    found, reasons = [], []
    for title, family in done.families():
        name = metric or (family.metrics or ["none"])[0]
        if name not in family.metrics:
            reasons.append(f"{title}: has no metric {name!r}")
        elif not (family.frame["method"] == "none").any():
            reasons.append(f"{title}: has no full-precision cell; run method=none")
        elif family.frame.loc[family.frame["method"] == "none", f"{METRIC}{name}"].isna().all():
            reasons.append(f"{title}: full precision has no {name}; measure it again with method=none")
        else:
            found.append(_of_family(title, family, name))
    if not found:
        raise ValueError("no damage can be told: " + "; ".join(reasons))
    return found


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
    quality = Quality.of(family, metric)
    rows = family.frame[family.frame[quality.column].notna()].reset_index(drop=True)
    figures = rows[quality.column].to_numpy(dtype=np.float64)
    scores = family.scores(rows, metric)
    usable = scores is not None and np.allclose(scores.mean(axis=1), figures)
    draws = None
    if usable and scores is not None:
        draws = np.ascontiguousarray((quality.sign * resampled_means(scores, family.owners(rows, metric))).T)
    measured = _Measured(quality.sign * figures, draws)
    selections = [_selection(row, family.parts) for row in rows.to_dict("records")]
    # Of several full-precision cells the median one, as in a frontier.
    baselines = np.flatnonzero(rows["method"] == "none")
    full = int(baselines[np.argmin(np.abs(figures[baselines] - np.median(figures[baselines])))])
    by_cell = {
        (method, selection): index
        for index, (method, selection) in enumerate(zip(rows["method"], selections, strict=True))
    }
    notes = [] if usable else ["no intervals: not all cells have per-item scores whose mean is the metric"]
    if len(rows) == (rows["method"] == "none").sum():
        notes.append("no quantized cell: there is no damage to tell; run a sweep over bits")
    notes += [*_left_out(rows, family.parts), *warned(rows, metric), *defined(rows, metric)]
    return Sensitivity(
        title,
        quality,
        float(figures[full]),
        pd.DataFrame(_alone(by_cell, measured, full)),
        pd.DataFrame(_pairs(by_cell, measured, full)),
        pd.DataFrame(_methods(by_cell, measured.figures)),
        tuple(notes),
    )


def _left_out(rows: pd.DataFrame, parts: Iterable[str]) -> Iterable[str]:
    """Yield sentences on the cells that say nothing of one selection or of two."""
    several = pd.Series(data=False, index=rows.index)
    for part in parts:
        several |= mixed(rows, part)
    for number, verbs in ((int(several.sum()), SEVERAL), (int(rows["method"].map(mixes_methods).sum()), MIXED)):
        if number:
            yield out_of(number, len(rows), "cell", *verbs)


# What cells do that say nothing of one selection: one of them, several of them.
SEVERAL = (
    "gives the units of a part several bit-widths, or chooses them by number: it is compared between methods only",
    "give the units of a part several bit-widths, or choose them by number: they are compared between methods only",
)
MIXED = (
    "mixes methods: it is no damage of one method, and a method of its own",
    "mix methods: they are no damage of one method, and a method of their own",
)


# A quantized part: name, bits, block groups, layer kinds, own group size, and what these do not describe. A cell's
# selection is the set of these.
_Choice = tuple[str, float, str, str, str, str]


def _selection(row: Mapping[str, Any], parts: Iterable[str]) -> frozenset[_Choice]:
    return frozenset(
        (
            part,
            _bits(row[f"{BITS}{part}"]),
            _text(row, f"blocks.{part}"),
            _text(row, f"layers.{part}"),
            _text(row, f"group.{part}"),
            _text(row, f"{SELECTION}{part}"),
        )
        for part in parts
        if not pd.isna(row[f"{BITS}{part}"]) and row[f"{BITS}{part}"] < FULL_PRECISION_BITS
    )


def _bits(value: float) -> float:
    return int(value) if value == int(value) else float(value)


def _text(row: Mapping[str, Any], column: str) -> str:
    found = row.get(column)
    return found if isinstance(found, str) else ""


def _mixed(selection: Iterable[_Choice]) -> bool:
    return any(choice[-1] for choice in selection)


def _alone(by_cell: Mapping[Any, int], measured: _Measured, full: int) -> list[dict[str, Any]]:
    chosen = [
        (method, next(iter(selection)), index)
        for (method, selection), index in by_cell.items()
        if len(selection) == 1 and not mixes_methods(method) and not _mixed(selection)
    ]
    damages = measured.combine([{full: 1.0, index: -1.0} for _, _, index in chosen])
    names = ("part", "bits", "blocks", "layers", "group")
    order = ("method", "part", "blocks", "layers", "group", "bits")
    found = [
        {name: {"method": method, **dict(zip(names, one, strict=False))}[name] for name in order}
        | _named(damage, "damage")
        for (method, one, _), damage in zip(chosen, damages, strict=True)
    ]
    return sorted(found, key=lambda row: [part_order(row[name]) if name == "part" else row[name] for name in order])


def _pairs(by_cell: Mapping[Any, int], measured: _Measured, full: int) -> list[dict[str, Any]]:
    chosen, weights = [], []
    for (method, selection), index in by_cell.items():
        if len(selection) != 2 or _mixed(selection):
            continue
        first, second = sorted(selection, key=lambda choice: part_order(choice[0]))
        alone = [by_cell.get((method, frozenset([choice]))) for choice in (first, second)]
        if alone[0] is None or alone[1] is None:
            continue
        chosen.append((method, f"{choice(*first[:-1])}, {choice(*second[:-1])}"))
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
