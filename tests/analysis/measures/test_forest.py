"""Importances from lookup tables equal those of scikit-learn and of SHAP."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from analysis.measures import forest as forests
from analysis.measures.forest import Grid, permutation_importances, shap_values, tree_explainer

# Bits of each part: whole, means of several widths, and many parts.
GRIDS = [[(2, 3, 4, 8, 16)] * 3, [(2, 3.27, 4), (3, 8), (2, 4, 5.5, 16)], [(2, 4)] * 5, [(3, 4, 5, 6, 7, 8)] * 2]


def drawn(levels: list[tuple[float, ...]]) -> tuple[RandomForestRegressor, np.ndarray, np.ndarray]:
    """Fit a forest to a bootstrap draw of a grid in which two columns interact and a third does nothing."""
    generator = np.random.default_rng(len(levels))
    bits = np.array(list(itertools.product(*levels)), dtype=float)
    bits = bits[generator.integers(0, len(bits), 2 * len(bits))]
    score = bits[:, 0] + np.sin(bits[:, :2]).prod(axis=1) + generator.normal(0, 0.1, len(bits))
    return RandomForestRegressor(30, random_state=1).fit(bits, score), bits, score


@pytest.mark.parametrize("levels", GRIDS, ids=lambda levels: "x".join(str(len(one)) for one in levels))
def test_importances_are_those_of_the_libraries(levels: list[tuple[float, ...]]) -> None:
    forest, bits, score = drawn(levels)
    by_library = permutation_importance(forest, bits, score, n_repeats=4, random_state=7).importances_mean
    found = permutation_importances(forest, Grid.of(bits), score, 4, 7)
    assert found == pytest.approx(by_library, rel=1e-9, abs=1e-12)
    distinct = np.unique(bits, axis=0)[::2]
    np.testing.assert_allclose(
        shap_values(forest, Grid.of(bits), distinct), tree_explainer()(forest).shap_values(distinct), rtol=0, atol=1e-11
    )


def test_values_of_many_columns_are_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    forest, bits, _ = drawn(GRIDS[3])
    own = shap_values(forest, Grid.of(bits), bits[:5])
    monkeypatch.setattr(forests, "MOST_COLUMNS", 1)
    monkeypatch.setattr(forests, "expectations", None)
    np.testing.assert_allclose(shap_values(forest, Grid.of(bits), bits[:5]), own, rtol=0, atol=1e-11)


def test_values_add_up_to_what_the_forest_predicts() -> None:
    forest, bits, _ = drawn(GRIDS[1])
    grid = Grid.of(bits)
    mean = float(forests.expectations(forest, grid)[()].item())
    np.testing.assert_allclose(shap_values(forest, grid, bits).sum(axis=1) + mean, forest.predict(bits), rtol=1e-12)
