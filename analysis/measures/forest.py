"""Permutation importance and SHAP values of a random forest over few columns of few levels, as bits of parts are.

A grid has thousands of cells but few bit-widths a part. So a forest predicts each distinct combination of them once, and
every repeat of the permutation importance looks its predictions up. SHAP values are Shapley values over the subsets of the
columns; with few columns, each subset's expectations are a table over the levels of its columns, which all leaves of the
forest are summed into at once. Figures are those of scikit-learn and of SHAP's tree explainer, which are used beyond
``MOST_COLUMNS``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor

# Beyond, subsets of columns and combinations of levels are too many for a table.
MOST_COLUMNS, MOST_COMBINATIONS = 5, 50_000


@dataclass(frozen=True)
class Grid:
    """Rows ``[N, P]`` as indices ``places`` ``[N, P]`` into the sorted ``levels`` of each column."""

    rows: np.ndarray
    levels: tuple[np.ndarray, ...]
    places: np.ndarray

    @staticmethod
    def of(rows: np.ndarray) -> Grid:
        found = [np.unique(column, return_inverse=True) for column in rows.T]
        return Grid(rows, tuple(levels for levels, _ in found), np.stack([place for _, place in found], axis=1))

    @cached_property
    def strides(self) -> np.ndarray:
        """The steps ``[P]`` that make the places of a row a single number."""
        sizes = [1, *(len(levels) for levels in self.levels[:0:-1])]
        return np.cumprod(np.array(sizes, dtype=np.int64))[::-1]

    @property
    def is_small(self) -> bool:
        return len(self.levels) <= MOST_COLUMNS and math.prod(map(len, self.levels)) <= MOST_COMBINATIONS


def permutation_importances(
    forest: RandomForestRegressor, grid: Grid, score: np.ndarray, repeats: int, seed: int
) -> np.ndarray:
    """Return how much of R2 is lost ``[P]`` if a column is shuffled, the mean of ``repeats``.

    Draws are those of ``sklearn.inspection.permutation_importance``, so the figures are its ``importances_mean``.
    """
    drawn = np.random.RandomState(seed).randint(np.iinfo(np.int32).max + 1)
    codes = [grid.places @ grid.strides]
    for column, stride in enumerate(grid.strides):
        rest = codes[0] - grid.places[:, column] * stride
        # scikit-learn shuffles rows already shuffled, with an index already shuffled.
        generator, order = np.random.RandomState(drawn), np.arange(len(score))
        shuffled = grid.places[:, column]
        for _ in range(repeats):
            generator.shuffle(order)
            shuffled = shuffled[order]
            codes.append(rest + shuffled * stride)
    distinct, place = np.unique(np.concatenate(codes), return_inverse=True)
    predicted = forest.predict(_rows_of(grid, distinct))[place].reshape(len(codes), -1)
    lost = np.square(score - predicted).sum(axis=1) / np.square(score - score.mean()).sum()
    found: np.ndarray = (lost[1:] - lost[0]).reshape(-1, repeats).mean(axis=1)
    return found


def _rows_of(grid: Grid, codes: np.ndarray) -> np.ndarray:
    left, columns = codes, []
    for stride, levels in zip(grid.strides, grid.levels, strict=True):
        place, left = np.divmod(left, stride)
        columns.append(levels[place])
    return np.stack(columns, axis=1)


def shap_values(forest: RandomForestRegressor, grid: Grid, distinct: np.ndarray) -> np.ndarray:
    """Return the SHAP values ``[D, P]`` of rows ``distinct``, whose levels are the grid's."""
    if not grid.is_small:
        found: np.ndarray = tree_explainer()(forest).shap_values(distinct)
        return found
    values = _shapley(expectations(forest, grid), len(grid.levels))
    places = tuple(np.searchsorted(levels, column) for levels, column in zip(grid.levels, distinct.T, strict=True))
    return np.stack([np.broadcast_to(one, tuple(map(len, grid.levels)))[places] for one in values], axis=1)


def tree_explainer() -> Any:
    # Slow to import; it also imports a plotting library that warns.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from shap import TreeExplainer
    return TreeExplainer


def _shapley(tables: dict[tuple[int, ...], np.ndarray], columns: int) -> list[np.ndarray]:
    """Return the Shapley values of each column, as tables that broadcast over all levels."""
    found = []
    for column in range(columns):
        others = [one for one in range(columns) if one != column]
        found.append(
            sum(
                (tables[tuple(sorted((*subset, column)))] - tables[subset])
                / (columns * math.comb(columns - 1, len(subset)))
                for size in range(columns)
                for subset in combinations(others, size)
            )
        )
    return found


def expectations(forest: RandomForestRegressor, grid: Grid) -> dict[tuple[int, ...], np.ndarray]:
    """Return for each subset of the columns the forest's expected prediction if only these are known.

    The tables have the levels of these columns along their axes, and 1 along the others. Where a tree splits by a column that
    is not known, both sides count by their training rows, as in SHAP's ``tree_path_dependent`` explanations.
    """
    leaves = _Leaves.of(forest, grid)
    columns = range(len(grid.levels))
    return {
        subset: leaves.summed(subset, [len(levels) for levels in grid.levels])
        for size in range(len(grid.levels) + 1)
        for subset in combinations(columns, size)
    }


@dataclass(frozen=True)
class _Leaves:
    """All leaves of a forest: levels ``low`` to before ``high`` ``[L, P]`` that lead there, ``value`` ``[L]``, and ``share``
    ``[L, P]`` of the training rows that splits by each column let through to there.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    value: np.ndarray

    @staticmethod
    def of(forest: RandomForestRegressor, grid: Grid) -> _Leaves:
        """Follow all trees from their roots at once, a level of depth at a time."""
        trees = [estimator.tree_ for estimator in forest.estimators_]
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        left, right = (
            np.concatenate(
                [getattr(tree, f"children_{side}") + start for tree, start in zip(trees, starts, strict=False)]
            )
            for side in ("left", "right")
        )
        feature, count = (
            np.concatenate([getattr(tree, name) for tree in trees]) for name in ("feature", "weighted_n_node_samples")
        )
        value = np.concatenate([tree.value[:, 0, 0] for tree in trees]) / len(trees)
        cut = _cuts(np.concatenate([tree.threshold for tree in trees]), feature, grid)
        nodes = starts[:-1]
        low = np.zeros((len(nodes), len(grid.levels)), dtype=np.int64)
        high = np.tile([len(levels) for levels in grid.levels], (len(nodes), 1))
        share = np.ones(low.shape)
        done: list[tuple[np.ndarray, ...]] = []
        while len(nodes):
            is_leaf = feature[nodes] < 0
            done.append((low[is_leaf], high[is_leaf], share[is_leaf], value[nodes[is_leaf]]))
            inner = ~is_leaf
            nodes, low, high, share = nodes[inner], low[inner], high[inner], share[inner]
            nodes, low, high, share = _children(nodes, low, high, share, left, right, feature, count, cut)
        return _Leaves(*(np.concatenate(parts) for parts in zip(*done, strict=True)))

    def summed(self, known: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
        """Return the sum of the leaves' values, weighted by the unknown columns' shares, over the levels of the known."""
        unknown = [column for column in range(len(sizes)) if column not in known]
        weight = self.value * self.share[:, unknown].prod(axis=1)
        # A leaf covers a box of levels: enter its value at the corners, then sum along each axis.
        shape = tuple(sizes[column] + 1 for column in known)
        table = np.zeros(math.prod(shape))
        for ends in product((0, 1), repeat=len(known)):
            corner = [(self.high if end else self.low)[:, column] for column, end in zip(known, ends, strict=True)]
            place = np.ravel_multi_index(corner, shape) if known else np.zeros(len(weight), dtype=np.int64)
            table += (-1) ** sum(ends) * np.bincount(place, weight, len(table))
        table = table.reshape(shape)
        for axis in range(len(known)):
            table = np.cumsum(table, axis=axis)
        table = table[tuple(slice(0, -1) for _ in known)]
        return table.reshape([size if column in known else 1 for column, size in enumerate(sizes)])


def _cuts(threshold: np.ndarray, feature: np.ndarray, grid: Grid) -> np.ndarray:
    """Return how many levels of its column each node sends to the left; trees see levels in single precision."""
    cut = np.zeros(len(threshold), dtype=np.int64)
    for column, levels in enumerate(grid.levels):
        here = feature == column
        cut[here] = np.searchsorted(levels.astype(np.float32).astype(np.float64), threshold[here], side="right")
    return cut


def _children(
    nodes: np.ndarray, low: np.ndarray, high: np.ndarray, share: np.ndarray,
    left: np.ndarray, right: np.ndarray, feature: np.ndarray, count: np.ndarray, cut: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Return the children of inner nodes, with their levels and shares."""
    line, column, middle = np.arange(len(nodes)), feature[nodes], cut[nodes]
    found = []
    for side, is_left in ((left, True), (right, False)):
        of_side = [low.copy(), high.copy(), share.copy()]
        of_side[1 if is_left else 0][line, column] = middle
        of_side[2][line, column] *= count[side[nodes]] / count[nodes]
        found.append((side[nodes], *of_side))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
