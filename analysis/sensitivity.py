"""What a selection costs by itself, what two cost together, and which method costs less at the same assignment.

Damage is the full-precision figure less the cell's, of one family of comparable cells. Where all cells have per-item scores
over the same items, and the metric is their mean, a figure has a 95% interval from items drawn with replacement, the same
draw for every cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import BITS, FULL_PRECISION_BITS, METRIC, Cells, part_order
from analysis.frontier import resampled_means

WHOLE = {"blocks": "front+middle+end", "layers": "attention+mlp"}


@dataclass(frozen=True)
class Sensitivity:
    """Tables of one family by one metric, each with a row a comparison; empty where the cells do not allow any.

    ``alone``: damage of one part, block group or layer kind with all else at full precision. ``pairs``: damage of two parts
    together, the sum of their damages alone, and the ``interaction`` between (above zero: worse together). ``methods``: at
    the assignments that both have, how much higher ``method`` scores than ``than`` on average, and how often.
    """

    title: str
    metric: str
    full: float
    alone: pd.DataFrame
    pairs: pd.DataFrame
    methods: pd.DataFrame
    notes: tuple[str, ...]


def sensitivities(cells: Cells, metric: str | None = None) -> list[Sensitivity]:
    """Every family's; a ValueError where none has a full-precision cell to measure damage from."""
    done = cells.of(cells.frame[cells.frame["status"] == "done"])
    found, reasons = [], []
    for title, family in done.families():
        name = metric or (family.metrics or ["none"])[0]
        if name not in family.metrics:
            reasons.append(f"{title}: has no metric {name!r}")
        elif not (family.frame["method"] == "none").any():
            reasons.append(f"{title}: has no full-precision cell; run method=none")
        else:
            found.append(_of_family(title, family, name))
    if not found:
        raise ValueError("no damage can be told: " + "; ".join(reasons))
    return found


@dataclass(frozen=True)
class _Measured:
    """Figures ``[cells]`` and, where items allow them, bootstrap draws ``[draws, cells]`` of the same cells."""

    figures: np.ndarray
    draws: np.ndarray | None

    def combine(self, weights: Mapping[int, float]) -> dict[str, float]:
        """A weighted sum of cells' figures, with its interval."""
        index, factor = list(weights), np.array(list(weights.values()))
        told = {"value": float(self.figures[index] @ factor)}
        if self.draws is not None:
            low, high = np.percentile(self.draws[:, index] @ factor, (2.5, 97.5))
            told |= {"low": float(low), "high": float(high)}
        return told


def _of_family(title: str, family: Cells, metric: str) -> Sensitivity:
    rows = family.frame[family.frame[f"{METRIC}{metric}"].notna()].reset_index(drop=True)
    figures = rows[f"{METRIC}{metric}"].to_numpy(dtype=np.float64)
    scores = family.scores(rows, metric)
    usable = scores is not None and np.allclose(scores.mean(axis=1), figures)
    measured = _Measured(figures, resampled_means(scores) if usable and scores is not None else None)
    selections = [_selection(row, family.parts) for _, row in rows.iterrows()]
    full = int(np.flatnonzero(rows["method"] == "none")[0])
    by_cell = {
        (row["method"], selection): index
        for index, (row, selection) in enumerate(zip(rows.to_dict("records"), selections, strict=True))
    }
    notes = [] if usable else ["no intervals: not all cells have per-item scores whose mean is the metric"]
    if len(rows) == (rows["method"] == "none").sum():
        notes.append("no quantized cell: there is no damage to tell; run a sweep over bits")
    return Sensitivity(
        title,
        metric,
        float(figures[full]),
        pd.DataFrame(_alone(by_cell, measured, full)),
        pd.DataFrame(_pairs(by_cell, measured, full)),
        pd.DataFrame(_methods(by_cell, figures)),
        tuple(notes),
    )


# One part of a cell: its name, bits, block groups and layer kinds. A cell's selection is the set of them.
_Choice = tuple[str, int, str, str]


def _selection(row: pd.Series, parts: Iterable[str]) -> frozenset[_Choice]:
    return frozenset(
        (part, int(row[f"{BITS}{part}"]), row[f"blocks.{part}"], row[f"layers.{part}"])
        for part in parts
        if not pd.isna(row[f"{BITS}{part}"]) and row[f"{BITS}{part}"] < FULL_PRECISION_BITS
    )


def _alone(by_cell: Mapping[Any, int], measured: _Measured, full: int) -> list[dict[str, Any]]:
    found = []
    for (method, selection), index in by_cell.items():
        if len(selection) != 1:
            continue
        part, bits, blocks, layers = next(iter(selection))
        damage = measured.combine({full: 1.0, index: -1.0})
        found.append(
            {
                "method": method,
                "part": part,
                "blocks": blocks,
                "layers": layers,
                "bits": bits,
                **_named(damage, "damage"),
            }
        )
    return sorted(
        found, key=lambda row: (row["method"], part_order(row["part"]), row["blocks"], row["layers"], row["bits"])
    )


def _pairs(by_cell: Mapping[Any, int], measured: _Measured, full: int) -> list[dict[str, Any]]:
    found = []
    for (method, selection), index in by_cell.items():
        if len(selection) != 2:
            continue
        first, second = sorted(selection, key=lambda choice: part_order(choice[0]))
        alone = [by_cell.get((method, frozenset([choice]))) for choice in (first, second)]
        if alone[0] is None or alone[1] is None:
            continue
        # (full - pair) - (full - first) - (full - second)
        interaction = measured.combine({index: -1.0, full: -1.0, alone[0]: 1.0, alone[1]: 1.0})
        together = measured.combine({full: 1.0, index: -1.0})["value"]
        found.append(
            {
                "method": method,
                "parts": f"{_told(first)}, {_told(second)}",
                "together": together,
                "sum": together - interaction["value"],
                **_named(interaction, "interaction"),
            }
        )
    return sorted(found, key=lambda row: (row["method"], row["parts"]))


def _told(choice: _Choice) -> str:
    """``connector 3``, with what is narrowed in brackets: ``connector 3 (front mlp)``."""
    part, bits, blocks, layers = choice
    narrowed = [shown for shown, name in ((blocks, "blocks"), (layers, "layers")) if shown != WHOLE[name]]
    return f"{part} {bits}" + (f" ({' '.join(narrowed)})" if narrowed else "")


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
                    "higher_by": float(difference.mean()),
                    "higher_in": int((difference > 0).sum()),
                }
            )
    return found


def _named(told: Mapping[str, float], name: str) -> dict[str, float]:
    return {name if key == "value" else key: value for key, value in told.items()}
