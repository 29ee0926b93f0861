"""Recall equals a plain sort, ties count against the model, both directions and their means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics import RetrievalScorer, metric_names

RECALLS = list(metric_names("ranks"))


def texts_of(sizes: list[int]) -> dict[str, list[str]]:
    return {f"i{i}": [f"i{i}t{j}" for j in range(size)] for i, size in enumerate(sizes)}


def plain_recall(scores: np.ndarray, sizes: list[int], k: int) -> tuple[float, float]:
    """Compute recall by sorting every row and column, wrong answers first among equals."""
    owner = [image for image, size in enumerate(sizes) for _ in range(size)]
    by_image = []
    for image, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda text: (-row[text], owner[text] == image))
        by_image.append(any(owner[text] == image for text in order[:k]))
    by_text = []
    for text, column in enumerate(scores.T):
        order = sorted(range(len(column)), key=lambda image: (-column[image], image == owner[text]))
        by_text.append(owner[text] in order[:k])
    return float(np.mean(by_image)), float(np.mean(by_text))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=14), st.integers(0, 2**32 - 1), st.sampled_from([3, 1000]))
def test_equals_a_plain_sort(sizes: list[int], seed: int, levels: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, (len(sizes), sum(sizes))).astype(float)
    results = RetrievalScorer(texts_of(sizes), RECALLS).score(scores)
    means = []
    for k in (1, 5, 10):
        text, image = plain_recall(scores, sizes, k)
        assert results[f"text_recall_at_{k}"].value == pytest.approx(text, abs=1e-12)
        assert results[f"image_recall_at_{k}"].value == pytest.approx(image, abs=1e-12)
        assert results[f"recall_at_{k}"].value == pytest.approx((text + image) / 2, abs=1e-12)
        means.append((text + image) / 2)
    assert results["recall_mean"].value == pytest.approx(np.mean(means), abs=1e-12)


def test_a_perfect_and_a_blind_model() -> None:
    owner = np.repeat(np.arange(30), 5)
    scorer = RetrievalScorer(texts_of([5] * 30), RECALLS)
    perfect = scorer.score((np.arange(30)[:, None] == owner).astype(float))
    assert {result.value for result in perfect.values()} == {1.0}
    assert {result.value for result in scorer.score(np.ones((30, 150))).values()} == {0.0}
    assert {result.value for result in scorer.score(np.full((30, 150), np.nan)).values()} == {0.0}


def test_a_score_that_is_no_number_is_the_lowest() -> None:
    scores = np.array([[np.nan, 1.0], [-5.0, 2.0]])
    results = RetrievalScorer({"a": ["x"], "b": ["y"]}, ["text_recall_at_1", "image_recall_at_1"]).score(scores)
    assert results["text_recall_at_1"].per_item == {"a": 0.0, "b": 1.0}
    assert results["image_recall_at_1"].per_item == {"x": 0.0, "y": 1.0}


def test_items_are_queries_and_images() -> None:
    results = RetrievalScorer(texts_of([1, 2]), RECALLS).score(np.eye(2)[:, [0, 1, 1]])
    assert list(results["text_recall_at_1"].per_item) == ["i0", "i1"]
    assert list(results["image_recall_at_1"].per_item) == ["i0t0", "i1t0", "i1t1"]
    assert list(results["recall_at_1"].per_item) == ["i0", "i1"]


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="'b' needs a list of at least one text id"):
        RetrievalScorer({"a": ["x"], "b": []})
    with pytest.raises(ValueError, match="every text id once"):
        RetrievalScorer({"a": ["x"], "b": ["x"]})
    with pytest.raises(ValueError, match=r"Scores are \(3, 2\); 2 images and 3 texts need \(2, 3\)"):
        RetrievalScorer({"a": ["x", "y"], "b": ["z"]}).score(np.ones((3, 2)))
    with pytest.raises(ValueError, match="'cider' needs captions; RetrievalScorer has ranks"):
        RetrievalScorer({"a": ["x"]}, ["cider"])
