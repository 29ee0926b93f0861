"""Importance: how much of the score's variation each part's bit-width explains.

As in the study (arXiv 2601.15287), a random forest predicts the score from the bits of the parts; its impurity importance,
permutation importance and mean absolute SHAP values (arXiv 1802.03888) are each normalised to 100 and averaged. Added here:
a bootstrap interval over cells, the forest's cross-validated fit, and three checks for a ranking that is an artifact of the
grid: only the bit-widths that all parts share, each bit-width left out in turn, and importance per bit of model size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold, cross_val_predict

from analysis.cells import Cells
from analysis.cells.columns import BITS, METRIC, SELECTION
from analysis.cells.remarks import left_out, other_methods, warned
from analysis.cells.selections import by_number, methods_in, of_method, parts_in, slots, whole
from analysis.measures.forest import Grid, permutation_importances, shap_values
from analysis.progress import counted as in_progress
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.reporting.compare import ROUNDING
from mmq_sweeps.reporting.counts import are, counted, out_of
from mmq_sweeps.reporting.table import metric_label

TREES = 100
REPEATS = 10
RESAMPLES = 40
FEW_RESAMPLES = 8
FOLDS = 5
MEASURES = ("forest", "permutation", "shap")
LEAST_CELLS = 20
# SHAP explains at most this many distinct cells, drawn at random: its time grows with cells x trees.
MOST_EXPLAINED = 1000
WELL_FITTED = 0.5
FINE = "--fine takes cells narrowed or mixed by block group and layer kind"
# Share of the resamples that an interval of 95% may ignore.
MOST_CONSTANT = 0.05


@dataclass(frozen=True)
class Importance:
    """Importance of each part by a single metric.

    ``table`` has a row per feature: the three measures and their ``mean``, each summing to 100; the interval ``low``,
    ``high`` of the mean, NaN if every resample scores constantly; and ``per_bit``, importance per bit of model size, the
    largest 100. ``fit`` is the cross-validated
    share of explained variance. ``checks`` maps a check's name to its mean importance by feature; ``warnings`` are
    sentences on doubts about the ranking.
    """

    title: str
    metric: str
    count: int
    table: pd.DataFrame
    fit: float
    checks: dict[str, dict[str, float]]
    warnings: tuple[str, ...]
    method: str = ""

    @property
    def of_fit(self) -> str:
        """How much the forest explains, in words."""
        cells = counted(self.count, "cell")
        return f"{cells}; the forest explains {self.fit:.0%} of the variation of cells that it has not seen"


def importances(
    cells: Cells,
    metric: str | None = None,
    by_method: bool = True,
    fine: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    n_jobs: int = -1,
) -> list[Importance]:
    """Compute importances in every family of comparable cells, per method unless ``by_method`` is false.

    ``fine`` uses part x block group x layer kind as features, for grids that quantize only some blocks or layers of a part;
    otherwise such cells are left out, since a part's bits alone do not describe them. Families with fewer than
    ``LEAST_CELLS`` cells, fewer than two features whose bits vary, or a constant score are skipped. Forests are fitted in
    ``n_jobs`` processes, by default one a core. Raises ValueError with the reasons if no family remains.
    """
    found: list[Importance] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for title, family in cells.finished.families():
        name = metric or family.first_metric
        if name not in family.metrics:
            reasons[title, f"has no metric {name!r}"] = []
            continue
        methods = _methods(title, family.frame, by_method)
        if not methods:
            reasons[title, "has no quantized cell; run a sweep over bits"] = []
        for label, method, rows in methods:
            parts = family.parts
            lacking = int(rows[f"{METRIC}{name}"].isna().sum())
            without = f"{out_of(lacking, len(rows), 'cell', 'has', 'have')} no {metric_label(name)}"
            notes = [f"{without} and {are(lacking)} left out"] if lacking else []
            rows = rows[rows[f"{METRIC}{name}"].notna()]
            notes += list(other_methods(family.frame, method))
            kept = ~numbered(rows, parts) if fine else whole(rows, parts)
            if fine:
                number = int((~kept).sum())
                chosen = out_of(number, len(rows), "cell", "chooses", "choose")
                notes += [f"{chosen} units by number and {are(number)} left out here"] if number else []
            else:
                notes += [f"{told}; {FINE}" for told in left_out(rows, parts)]
            rows = rows[kept]
            features = fine_features(rows) if fine else part_features(rows)
            score = rows[f"{METRIC}{name}"].to_numpy(dtype=np.float64)
            if reason := _unfit(features, score):
                reasons.setdefault((title, "; ".join([reason, *notes])), []).append(method)
                continue
            one = _importance(label, name, rows, features, score, resamples, seed, n_jobs)
            found.append(replace(one, warnings=(*one.warnings, *notes, *warned(rows, name)), method=method))
    if not found:
        # Methods that lack the same are named together.
        told = (f"{', '.join([title, *methods])}: {reason}" for (title, reason), methods in reasons.items())
        raise ValueError("no importance can be told: " + "; ".join(told))
    return found


def _methods(title: str, frame: pd.DataFrame, by_method: bool) -> list[tuple[str, str, pd.DataFrame]]:
    """List title, method and cells of each forest."""
    if not by_method:
        return [(title, "all methods", frame)]
    return [(f"{title}, {name}", name, of_method(frame, name)) for name in methods_in(frame)]


def part_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the bits ``[N, P]`` of the parts whose bits vary."""
    columns = [f"{BITS}{part}" for part in parts_in(rows)]
    bits = rows[columns].rename(columns=lambda name: name.removeprefix(BITS)).astype(np.float64)
    return bits.loc[:, bits.nunique() > 1]


def fine_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the bits of every part x block group x layer kind whose bits vary; 16 if a cell does not quantize it."""
    features = {}
    for part in parts_in(rows):
        if part in END_PARTS:
            features[part] = rows[f"{BITS}{part}"].fillna(FULL_PRECISION_BITS)
            continue
        own = _selections(rows, part)
        for group in BLOCK_GROUPS:
            for kind in LAYER_KINDS:
                chosen = _names(rows[f"blocks.{part}"], group) & _names(rows[f"layers.{part}"], kind)
                bits = rows[f"{BITS}{part}"].where(chosen, FULL_PRECISION_BITS)
                features[f"{part} {group} {kind}"] = bits.where(own.isna(), own.map(partial(_bits_at, (group, kind))))
    bits = pd.DataFrame(features).astype(np.float64)
    return bits.loc[:, bits.nunique() > 1]


def _selections(rows: pd.DataFrame, part: str) -> pd.Series:
    """Return the selections of a part that bits do not describe, as text; missing for all others."""
    empty = pd.Series(None, rows.index, dtype=object)
    return rows[f"{SELECTION}{part}"].replace("", None) if f"{SELECTION}{part}" in rows else empty


def _bits_at(slot: tuple[str, str], selection: Any) -> float:
    return (
        float(slots(selection).get(slot, {"bits": FULL_PRECISION_BITS})["bits"])
        if isinstance(selection, str)
        else np.nan
    )


def numbered(rows: pd.DataFrame, parts: Sequence[str]) -> pd.Series:
    """Return a mask of the cells that choose units by number: block groups and layer kinds do not describe them."""
    found = pd.Series(data=False, index=rows.index)
    for part in parts:
        found |= _selections(rows, part).map(lambda text: isinstance(text, str) and bool(by_number(text))).astype(bool)
    return found


def _names(column: pd.Series, name: str) -> pd.Series:
    return column.fillna("").str.split("+").map(lambda names: name in names)


def _unfit(features: pd.DataFrame, score: np.ndarray) -> str | None:
    if len(score) < LEAST_CELLS:
        cells = counted(len(score), "cell is", "cells are")
        return f"{cells} too few for a forest; run at least {LEAST_CELLS}"
    if features.shape[1] < 2:
        return "fewer than two parts have several bit-widths; sweep component.PART.bits of two parts"
    if _constant(score):
        return "every cell has the same score"
    return None


def _constant(score: np.ndarray) -> bool:
    """Return true if scores differ by no more than rounding: their variation has nothing to explain."""
    return bool(np.ptp(score) <= ROUNDING * np.abs(score).max())


def _importance(
    title: str,
    metric: str,
    rows: pd.DataFrame,
    features: pd.DataFrame,
    score: np.ndarray,
    resamples: int,
    seed: int,
    n_jobs: int,
) -> Importance:
    bits = features.to_numpy()
    subsets = dict(_subsets(features, score))
    draws = np.random.default_rng(seed).integers(0, len(score), (resamples, len(score)))
    drawn = [draw for draw in draws if not _constant(score[draw])]
    work = [
        delayed(measures)(bits, score, seed),
        delayed(cross_validated_fit)(bits, score, seed),
        *(delayed(_mean_measure)(bits[kept], score[kept], seed) for kept in subsets.values()),
        *(delayed(_mean_measure)(bits[draw], score[draw], seed) for draw in drawn),
    ]
    # Worker processes each import scikit-learn, which takes longer than a few draws.
    fitted = Parallel(n_jobs=n_jobs if resamples > FEW_RESAMPLES else 1, return_as="generator")(work)
    found, fit, *means = in_progress(fitted, "forests", len(work))
    table = pd.DataFrame(found, index=features.columns, columns=list(MEASURES))
    table["mean"] = table.mean(axis=1)
    again = means[len(subsets) :]
    table["low"], table["high"] = np.percentile(again, (2.5, 97.5), axis=0) if again else (np.nan, np.nan)
    table["per_bit"] = _per_bit(table["mean"], rows, features)
    checks = {
        name: dict(zip(features, shares, strict=True))
        for name, shares in zip(subsets, means[: len(subsets)], strict=True)
    }
    doubts = [*_warnings(table, fit, checks), *_not_told_apart(table, resamples - len(again), resamples)]
    return Importance(title, metric, len(score), table, fit, checks, tuple(doubts))


def measures(bits: np.ndarray, score: np.ndarray, seed: int) -> np.ndarray:
    """Return impurity, permutation and SHAP importance ``[P, 3]`` of the columns of ``bits`` ``[N, P]``.

    Each sums to 100; a measure that finds nothing at all, as of a constant score, is NaN.
    """
    forest = RandomForestRegressor(TREES, random_state=seed).fit(bits, score)
    grid = Grid.of(bits)
    permuted = permutation_importances(forest, grid, score, REPEATS, seed)
    # A bootstrap draw repeats cells: explain each distinct cell once.
    distinct, count = np.unique(bits, axis=0, return_counts=True)
    if len(distinct) > MOST_EXPLAINED:
        chosen = np.random.default_rng(seed).choice(len(distinct), MOST_EXPLAINED, replace=False)
        distinct, count = distinct[chosen], count[chosen]
    shap = np.average(np.abs(shap_values(forest, grid, distinct)), axis=0, weights=count)
    found = np.stack([forest.feature_importances_, permuted.clip(min=0), shap], axis=1)
    total = found.sum(axis=0)
    shares: np.ndarray = np.divide(100 * found, total, out=np.full_like(found, np.nan), where=total > 0)
    return shares


def _mean_measure(bits: np.ndarray, score: np.ndarray, seed: int) -> np.ndarray:
    """Return the mean ``[P]`` of the measures, of those that find anything."""
    return pd.DataFrame(measures(bits, score, seed)).mean(axis=1).to_numpy()


def cross_validated_fit(bits: np.ndarray, score: np.ndarray, seed: int = 0) -> float:
    """Return the share of the score's variance that a forest explains in unseen cells: at most 1, 0 or less if nothing."""
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(RandomForestRegressor(TREES, random_state=seed), bits, score, cv=folds)
    return float(1 - np.square(score - predicted).sum() / np.square(score - score.mean()).sum())


def _per_bit(mean: pd.Series, rows: pd.DataFrame, features: pd.DataFrame) -> pd.Series:
    """Divide importance by the model size, in bits, that the feature's range of bit-widths spans; scale the largest to 100."""
    weights = pd.Series({name: _weights(name, rows, features) for name in features})
    saved = weights * (features.max() - features.min())
    rate = mean / saved.where(saved > 0)
    return 100 * rate / rate.max()


def _weights(name: str, rows: pd.DataFrame, features: pd.DataFrame) -> float:
    """Count the weights that a feature quantizes; NaN if unknown.

    A fine feature's count is solved by least squares from the parts' totals in cells with and without the feature.
    """
    part = name.split()[0]
    if f"weights.{part}" not in rows:
        return np.nan
    total = rows[f"weights.{part}"]
    if total.isna().any():
        return np.nan
    if name == part:
        return float(total.max())
    own = [feature for feature in features if feature.split()[0] == part]
    chosen = (features[own] < FULL_PRECISION_BITS).to_numpy(dtype=np.float64)
    counts, _, rank, _ = np.linalg.lstsq(chosen, total.to_numpy(dtype=np.float64), rcond=None)
    return float(counts[own.index(name)]) if rank == len(own) else np.nan


def _subsets(features: pd.DataFrame, score: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the mask of each subset of the cells whose ranking should be that of all."""
    shared = set.intersection(*(set(features[name]) for name in features))
    subsets = {}
    if any(set(features[name]) != shared for name in features):
        subsets["bit-widths that every part has"] = features.isin(shared).all(axis=1).to_numpy()
    for width in sorted({width for name in features for width in features[name]}):
        subsets[f"without {width:g} bits"] = (features != width).all(axis=1).to_numpy()
    for name, kept in subsets.items():
        if kept.sum() >= LEAST_CELLS and (features[kept].nunique() > 1).all() and not _constant(score[kept]):
            yield name, kept


def _warnings(table: pd.DataFrame, fit: float, checks: dict[str, dict[str, float]]) -> Sequence[str]:
    found = []
    if fit < WELL_FITTED:
        found.append(f"the forest explains only {max(fit, 0):.0%} of the variation of cells that it has not seen")
    ranking = _ranking(table["mean"])
    for name, shares in checks.items():
        if _ranking(pd.Series(shares)) != ranking:
            told = ", ".join(f"{feature} {share:.1f}" for feature, share in shares.items())
            found.append(
                f"the ranking changes with {name}: {told}"
                if name.startswith("bit")
                else f"the ranking changes {name}: {told}"
            )
    return found


def _not_told_apart(table: pd.DataFrame, constant: int, resamples: int) -> Iterator[str]:
    """Yield a warning unless the first feature has more importance than the second in nearly all resamples.

    ``constant`` of them score all the same, so they rank nothing and are no part of the intervals.
    """
    first, second = _ranking(table["mean"])[:2]
    if constant > MOST_CONSTANT * resamples:
        yield (
            f"{first} and {second} are not told apart: in {constant} of {resamples} resamples of the cells all score the "
            "same, so a few cells decide the ranking"
        )
    elif not table.loc[first, "low"] > table.loc[second, "high"]:
        yield f"{first} and {second} are not told apart: their intervals overlap"


def _ranking(shares: pd.Series) -> list[str]:
    return list(shares.sort_values(ascending=False, kind="stable").index)
