"""Ranks from scores and similarities: the shortlist, and the rank of ties."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mmq_sweeps.tasks.ranking import Captions, predictions_of


def hand_made(by_pair: list[list[float]], similarity: list[list[float]], shortlist: int) -> dict[str, Any]:
    """Return predictions for two images: the first has texts 0 and 1, the second has text 2."""
    captions = Captions(["a/0", "a/1", "b/0"], np.array([0, 0, 1]), ["x", "y", "z"], np.array([0, 1, 2]))
    found = predictions_of(["a", "b"], captions, np.array(by_pair), np.array(similarity), shortlist)
    return {query: json.loads(answer) for query, answer in found.items()}


def test_the_shortlist_is_by_similarity_and_the_order_by_the_score() -> None:
    similarity = [[0.9, 0.2, 0.8], [0.1, 0.3, 0.2]]
    scores = [[1.0, 9.0, 2.0], [5.0, 0.5, 0.1]]
    found = hand_made(scores, similarity, shortlist=2)
    assert found["a"] == {"rank": 1, "first": ["b/0", "a/0"]}, "the best score of all is not on the shortlist"
    assert found["b"] == {"rank": 1, "first": ["a/1", "b/0"]}
    assert found["a/0"] == {"rank": 1, "first": ["b", "a"]}
    assert found["a/1"] == {"rank": 0, "first": ["a", "b"]}
    found = hand_made(scores, similarity, shortlist=1)
    assert found["b"] == {"rank": 2, "first": ["a/1"]}, "its own text is not on the list, so it comes after all"
    assert found["b/0"] == {"rank": 1, "first": ["a"]}


def test_ties_and_what_is_no_number_count_against_the_model() -> None:
    found = hand_made([[1.0] * 3] * 2, [[0.5] * 3] * 2, shortlist=3)
    assert found["a"]["rank"] == 1, "of three alike, the other image's text counts as first"
    assert found["b"]["rank"] == 2
    assert [found[text]["rank"] for text in ("a/0", "a/1", "b/0")] == [1, 1, 1]
    collapsed = hand_made([[float("nan")] * 3] * 2, [[float("nan")] * 3] * 2, shortlist=3)
    assert {json.dumps(answer) for answer in collapsed.values()} == {'{"rank": null, "first": []}'}
