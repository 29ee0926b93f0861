from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestRegressor

from analysis.load import load
from analysis.measures import importance
from analysis.measures.forest import Grid, shap_values
from analysis.measures.importance import _per_bit, cross_validated_fit, fine_features, importances, measures
from tests.analysis.grids import stored

WIDTHS = (2, 3, 4, 8)


def grid(score, widths=WIDTHS) -> dict:
    """Return every assignment of ``widths`` to three parts, scored by ``score(vision, connector, language)``."""
    rows = [
        (dict(zip(("vision", "connector", "language"), bits, strict=True)), sum(bits) / 3, score(*bits))
        for bits in itertools.product(widths, repeat=3)
    ]
    return {"none": [({}, 16.0, 1.0)], "gptq": rows}


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grow ten trees only, for tests whose answer does not change with more."""
    monkeypatch.setattr(importance, "TREES", 10)


def test_the_published_gptq_importances_are_the_studys(published: Path) -> None:
    cells = load([f"published:{published}"])
    gptq = cells.of(cells.frame[cells.frame["source"].str.contains("gptq")])
    (found,) = importances(gptq, "cider", resamples=2)
    # arXiv 2601.15287 prints 50.4, 2.0 and 47.6.
    for part, share in (("vision", 50.3), ("connector", 2.1), ("language", 47.6)):
        assert found.table.loc[part, "mean"] == pytest.approx(share, abs=1.5)
    assert found.count == 448
    assert found.fit > 0.9
    # Only the ViT has a 2-bit level in that file, and that level makes it look as important as it does.
    told = next(warning for warning in found.warnings if "bit-widths that every part has" in warning)
    assert "language 9" in told


def test_a_part_that_decides_alone_has_all_of_it(tmp_path: Path) -> None:
    stored(tmp_path, grid(lambda vision, connector, language: vision / 8), items=2)
    (found,) = importances(load([str(tmp_path)]), resamples=2)
    assert found.table.loc["vision", "mean"] > 99
    assert found.table.loc["vision", "low"] > 95
    assert found.warnings == ()
    assert found.table.drop(columns=["low", "high", "per_bit"]).sum().tolist() == pytest.approx([100] * 4)


def test_parts_that_matter_alike_have_like_importance() -> None:
    rng = np.random.default_rng(0)
    bits = rng.choice(WIDTHS, (200, 2)).astype(float)
    shares = measures(bits, bits[:, 0] + bits[:, 1], seed=0).mean(axis=1)
    assert shares == pytest.approx([50, 50], abs=8)


@pytest.mark.usefixtures("few_trees")
def test_importance_per_bit_weighs_the_size_of_a_part(tmp_path: Path) -> None:
    stored(tmp_path, grid(lambda vision, connector, language: (vision + language) / 16), items=2)
    cells = load([str(tmp_path)])
    (found,) = importances(cells.of(cells.frame.assign(**{"weights.language": 1000})), resamples=1)
    # Language has ten times the weights of vision and the same range of bits.
    mean, per_bit = found.table["mean"], found.table["per_bit"]
    assert per_bit["vision"] == 100
    assert per_bit["language"] == pytest.approx(10 * mean["language"] / mean["vision"])


def test_importance_per_bit_of_a_narrowed_selection_weighs_what_it_quantizes() -> None:
    sizes = {("front", "attention"): 10, ("front", "mlp"): 30, ("end", "attention"): 20, ("end", "mlp"): 40}
    rows = []
    for blocks, layers, bits in itertools.product(("front", "end", "front+end"), ("attention", "mlp"), (3, 4)):
        weights = sum(size for (block, kind), size in sizes.items() if block in blocks and kind == layers)
        rows.append({"bits.vision": bits, "blocks.vision": blocks, "layers.vision": layers, "weights.vision": weights})
    frame = pd.DataFrame(rows)
    features = fine_features(frame)
    assert list(features) == [f"vision {block} {kind}" for block, kind in sizes]
    mean = pd.Series(25.0, features.columns)
    # Alike in importance and in bits: the rate falls as the size grows, and the smallest has 100.
    assert _per_bit(mean, frame, features).tolist() == pytest.approx([100, 100 / 3, 50, 25])


@pytest.mark.usefixtures("few_trees")
def test_of_many_cells_a_sample_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.array(list(itertools.product(range(2, 10), repeat=2)), dtype=float)
    score = 3 * bits[:, 0] + bits[:, 1]
    every = measures(bits, score, seed=0)
    explained: list[int] = []

    def watched(forest: RandomForestRegressor, grid: Grid, rows: np.ndarray) -> np.ndarray:
        explained.append(len(rows))
        return shap_values(forest, grid, rows)

    monkeypatch.setattr(importance, "shap_values", watched)
    monkeypatch.setattr(importance, "MOST_EXPLAINED", 40)
    sampled = measures(bits, score, seed=0)
    assert explained == [40]
    assert np.array_equal(sampled[:, :2], every[:, :2])
    assert sampled[:, 2] == pytest.approx(every[:, 2], abs=8)
    assert np.array_equal(sampled, measures(bits, score, seed=0))


@pytest.mark.usefixtures("few_trees")
def test_noise_is_not_explained() -> None:
    rng = np.random.default_rng(0)
    bits = rng.choice(WIDTHS, (120, 2)).astype(float)
    assert cross_validated_fit(bits, rng.normal(size=120)) < 0.2
    assert cross_validated_fit(bits, bits.sum(axis=1)) > 0.9


def test_methods_that_lack_the_same_are_named_together(tmp_path: Path) -> None:
    stored(tmp_path, {name: [({"vision": 3}, 8.0, 0.5)] for name in ("awq", "gptq")}, items=2)
    with pytest.raises(ValueError, match=r"told: m, t, awq, gptq: 1 cell is too few for a forest; run at least 20$"):
        importances(load([str(tmp_path)]), resamples=2)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 8.0, 0.5)]}, "2 cells are too few for a forest"),
        (grid(lambda *bits: 1.0, (2, 3, 4)), "every cell has the same score"),
        (
            {"none": [({}, 16.0, 1.0)], **{f"m{n}": [({"vision": 3}, 8.0, n / 30)] for n in range(30)}},
            "2 cells are too few",
        ),
    ],
)
def test_what_no_importance_can_be_told_of_is_an_error(tmp_path: Path, cells: dict, told: str) -> None:
    stored(tmp_path, cells, items=2)
    with pytest.raises(ValueError, match=told):
        importances(load([str(tmp_path)]), resamples=2)


def test_narrowed_selections_are_features_of_their_own(published: Path) -> None:
    frame = load([f"published:{published}"]).frame
    uniform = frame[frame["source"].str.contains("uniform")]
    features = fine_features(uniform)
    assert features.shape == (1500, 18)
    forest = RandomForestRegressor(10, random_state=0).fit(features, uniform["metric.cider"])
    shares = dict(zip(features, forest.feature_importances_, strict=True))
    # Never quantized in that file, though its columns name widths.
    for idle in ("language {} attention", "connector {} mlp"):
        assert all(shares[idle.format(group)] < 0.02 for group in ("front", "middle", "end"))
