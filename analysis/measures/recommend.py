"""Recommend an assignment under a budget: the best measured cell, cells as good, and unmeasured candidates.

Candidates are new combinations of the bit-widths in a method's cells. A random forest fitted to these cells predicts their
scores; its error is cross-validated. Predictions are never presented as results.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold, cross_val_predict

from analysis.cells import Cells
from analysis.cells.columns import BITS, METRIC
from analysis.cells.remarks import defined
from analysis.cells.selections import any_mixed, methods_in, mixes_methods, of_method, parts_in, whole
from analysis.measures.frontier import drawn_scores
from analysis.measures.importance import FOLDS, LEAST_CELLS, TREES
from analysis.measures.missing import again, command
from analysis.measures.quality import Quality
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS

SHOWN = 5
# A candidate whose score looks like the best cell's is no improvement.
SHOWN_DIGITS = 4


@dataclass(frozen=True)
class Recommendation:
    """The recommended cells of a family.

    ``best`` is a row of the table of cells; ``as_good`` has the rows that are not significantly worse, best first. All are
    within the budget; under a quality budget they also take no more bits than ``best``, the smallest.

    ``candidates`` are unmeasured: ``method``, ``bits`` by part, ``bpw_paper``, the ``expected`` score, the ``error`` of the
    forest (root mean square over unseen cells), and the ``command`` to measure it.
    """

    title: str
    quality: Quality
    budget: str
    full: float | None
    best: pd.Series
    as_good: pd.DataFrame
    candidates: list[dict[str, Any]]
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        return self.quality.metric

    @property
    def again(self) -> str:
        """The command of the best cell, if the bits of its parts alone do not say it."""
        row = self.best.to_frame().T
        several = any_mixed(row, _known_parts(row)).any()
        return again(self.best) if several or mixes_methods(str(self.best["method"])) else ""


def recommend(
    cells: Cells,
    max_bpw: float | None = None,
    min_quality: float | None = None,
    metric: str | None = None,
    seed: int = 0,
) -> list[Recommendation]:
    """Recommend for every family the best cell of at most ``max_bpw`` bits per weight, or the smallest cell that keeps
    the share ``min_quality`` of full precision. Give exactly one of the two. Raises ValueError if no family has a cell
    within the budget.
    """
    if (max_bpw is None) == (min_quality is None):
        raise ValueError("give one of --max-bpw and --min-quality")
    return cells.each_family(
        lambda title, family: _of_family(title, family, metric or family.first_metric, max_bpw, min_quality, seed),
        "nothing can be recommended",
    )


def _of_family(
    title: str, family: Cells, metric: str, max_bpw: float | None, min_quality: float | None, seed: int
) -> Recommendation:
    if metric not in family.metrics:
        raise ValueError(f"has no metric {metric!r}")
    quality = Quality.of(family, metric)
    if "bpw_paper" not in family.frame:
        raise ValueError("no cell has bits per weight")
    known = family.frame[quality.column].notna() & family.frame["bpw_paper"].notna()
    if not known.any():
        raise ValueError(f"no cell has both {metric} and bits per weight")
    rows = family.frame[known].reset_index(drop=True)
    full = quality.full(family.frame)
    limit = None
    if max_bpw is not None:
        budget, allowed = f"at most {max_bpw:g} bits per weight", rows["bpw_paper"] <= max_bpw
        if not allowed.any():
            raise ValueError(
                f"no cell has at most {max_bpw:g} bits per weight; the smallest has {rows['bpw_paper'].min():.3f}"
            )
        best = int(quality.best(rows[allowed]).index[0])
    else:
        if full is None:
            raise ValueError("has no full-precision cell, so its share cannot be told; run method=none")
        limit = quality.limit(full, float(min_quality or 0))
        if limit is None:
            raise ValueError(
                f"full precision has a {metric} of {full:.4f}, of which a share means nothing; use --max-bpw"
            )
        budget, allowed = quality.budget(full, float(min_quality or 0)), quality.keeps(rows, limit)
        if not allowed.any():
            raise ValueError(f"no cell keeps {min_quality:.0%} of full precision")
        best = int(quality.fewest_bits(rows[allowed]).index[0])
        # The goal is the fewest bits: a larger cell is no alternative.
        allowed &= rows["bpw_paper"] <= rows["bpw_paper"][best]
    as_good, notes = _as_good(family, rows, quality, best, allowed.to_numpy())
    candidates = _candidates(rows, quality, rows.loc[best], max_bpw, limit, seed)
    return Recommendation(
        title, quality, budget, full, rows.loc[best], as_good, candidates, (*notes, *defined(rows, metric))
    )


def _as_good(
    family: Cells, rows: pd.DataFrame, quality: Quality, best: int, allowed: np.ndarray
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return cells within the budget whose paired difference from ``best`` has a 95% interval that reaches zero, and notes."""
    chosen = rows[allowed]
    if len(chosen) == 1:
        return rows.iloc[:0], ()
    draws = drawn_scores(family, chosen, quality)
    if draws is None:
        return rows.iloc[:0], ("which cells are as good cannot be told: not all have per-item scores",)
    position = int(np.flatnonzero(chosen.index == best)[0])
    high = np.percentile(draws - draws[:, position : position + 1], 97.5, axis=0)
    kept = chosen[(high >= 0) & (chosen.index != best)]
    return quality.best(kept), ()


def _candidates(
    rows: pd.DataFrame, quality: Quality, best: pd.Series, max_bpw: float | None, limit: float | None, seed: int
) -> list[dict[str, Any]]:
    """Return up to ``SHOWN`` unmeasured assignments expected to beat ``best`` within the budget, nearest in size first."""
    parts = _known_parts(rows)
    if any(f"weights.{part}" not in rows for part in parts):
        return []  # The size of a new combination cannot be told.
    found: list[dict[str, Any]] = []
    for method in methods_in(rows):
        own = of_method(rows, method)
        own = own[whole(own, parts)]
        if len(own) >= LEAST_CELLS:
            found += _expected(own, method, parts, quality.metric, seed)
    sign, least = quality.sign, best[quality.column] if limit is None else limit
    if max_bpw is not None:
        better = [
            one
            for one in found
            if one["bpw_paper"] <= max_bpw
            and sign * round(one["expected"], SHOWN_DIGITS) > sign * round(least, SHOWN_DIGITS)
        ]
    else:
        better = [
            one for one in found if one["bpw_paper"] < best["bpw_paper"] and sign * one["expected"] >= sign * least
        ]
    nearest = sorted(better, key=lambda one: (abs(one["bpw_paper"] - best["bpw_paper"]), -sign * one["expected"]))
    return nearest[:SHOWN]


def _expected(own: pd.DataFrame, method: str, parts: list[str], metric: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a candidate for every combination of bits that ``own`` lacks."""
    bits = own[[f"{BITS}{part}" for part in parts]].to_numpy(dtype=np.float64)
    score = own[f"{METRIC}{metric}"].to_numpy(dtype=np.float64)
    measured = {tuple(line) for line in bits}
    levels = (sorted(set(column)) for column in bits.T)
    unmeasured = [line for line in itertools.product(*levels) if line not in measured]
    if not unmeasured:
        return
    forest = RandomForestRegressor(TREES, random_state=seed)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    error = float(np.sqrt(np.mean((cross_val_predict(forest, bits, score, cv=folds) - score) ** 2)))
    expected = forest.fit(bits, score).predict(np.array(unmeasured))
    for line, value in zip(unmeasured, expected, strict=True):
        chosen = {part: int(width) for part, width in zip(parts, line, strict=True)}
        yield {
            "method": method,
            "bits": chosen,
            "bpw_paper": _bpw(own, parts, line),
            "expected": float(value),
            "error": error,
            "command": command(own, method, chosen),
        }


def _known_parts(rows: pd.DataFrame) -> list[str]:
    return [part for part in parts_in(rows) if rows[f"{BITS}{part}"].notna().all()]


def _bpw(rows: pd.DataFrame, parts: list[str], widths: tuple[float, ...]) -> float:
    """Return the paper's bits per weight of ``widths``.

    The total parameter count is inferred from the bits per weight of the cell that saves most.
    """
    weights = np.array([rows[f"weights.{part}"].max() for part in parts])
    saved = (FULL_PRECISION_BITS - rows[[f"{BITS}{part}" for part in parts]].to_numpy(dtype=np.float64)) @ weights
    most = int(np.argmax(saved))
    parameters = saved[most] / (FULL_PRECISION_BITS - rows["bpw_paper"].to_numpy()[most])
    return float(FULL_PRECISION_BITS - (FULL_PRECISION_BITS - np.array(widths)) @ weights / parameters)
