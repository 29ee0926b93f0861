from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from mmq_sweeps.execution.run_cell import _items
from mmq_sweeps.metrics import AnswerScorer, paired_difference
from mmq_sweeps.metrics.probability.confidence import BINS, Aurc, Confident, Ece, risk_coverage
from mmq_sweeps.tasks.base import Predictions

PAIRS = st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), min_size=1, max_size=60)


def confident(pairs: list[tuple[bool, int]]) -> Confident:
    return Confident(
        np.array([float(right) for right, _ in pairs]), np.array([(level + 0.5) / 1001 for _, level in pairs])
    )


@settings(max_examples=40)
@given(PAIRS)
def test_calibration_error_is_that_of_the_reliability_diagram_of_scikit_learn(pairs: list[tuple[bool, int]]) -> None:
    found = confident(pairs)
    true, told = calibration_curve(found.right, found.confidence, n_bins=BINS)
    counts, _ = np.histogram(found.confidence, bins=BINS, range=(0, 1))
    expected = counts[counts > 0] @ np.abs(true - told) / len(pairs)
    scores = Ece().score(None, found)
    assert scores.value == pytest.approx(expected, abs=1e-12)
    assert len(scores.per_item) == len(pairs)


def test_sure_and_right_has_no_calibration_error() -> None:
    assert Ece().score(None, Confident(np.ones(3), np.ones(3))).value == 0
    assert Ece().score(None, Confident(np.zeros(3), np.ones(3))).value == 1


@settings(max_examples=40)
@given(PAIRS, st.randoms(use_true_random=False))
def test_area_under_the_risk_coverage_curve_of_any_draw(pairs: list[tuple[bool, int]], random: object) -> None:
    counts = [random.randrange(4) for _ in pairs]  # type: ignore[attr-defined]
    counts[0] += 1
    drawn = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    # The most confident first; wrong answers first among equals.
    errors = [1 - right for right, _ in sorted(drawn, key=lambda pair: (-pair[1], pair[0]))]
    expected = np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1))
    totals = Aurc().score(None, confident(pairs)).totals
    assert Aurc().figures(totals, np.array([counts], dtype=float))[0] == pytest.approx(expected)
    coverage, risk = risk_coverage(Aurc().score(None, confident(drawn)).totals.tolist())
    assert risk == pytest.approx(np.cumsum(errors) / np.arange(1, len(errors) + 1))
    assert coverage[-1] == 1


def asked(confidences: list[float], right: list[bool]) -> Predictions:
    found = Predictions({str(place): "yes" if good else "no" for place, good in enumerate(right)})
    found.log_probabilities = {str(place): (math.log(level), 2) for place, level in enumerate(confidences)}
    return found


def test_a_model_that_is_unsure_of_its_wrong_answers_is_better_in_both() -> None:
    scorer = AnswerScorer(
        {str(place): ["yes"] for place in range(8)},
        ["gqa_accuracy", "ece", "aurc"],
        {str(place): "ab"[place % 2] for place in range(8)},
    )
    right = [True] * 4 + [False] * 4
    knowing = scorer.score(asked([0.9, 0.95, 0.9, 0.85, 0.1, 0.05, 0.1, 0.2], right))
    boasting = scorer.score(asked([0.6, 0.7, 0.65, 0.6, 0.9, 0.95, 0.99, 0.97], right))
    for name in ("ece", "aurc"):
        difference = paired_difference(knowing[name], boasting[name])
        assert difference.value > 0
        assert difference.significant
        assert set(knowing[name].by_type) == {"a", "b"}
        low, high = knowing[name].interval
        assert low <= knowing[name].value <= high
        assert not knowing[name].higher_is_better
    assert knowing["aurc"].value == pytest.approx(np.mean([0, 0, 0, 0, 1 / 5, 2 / 6, 3 / 7, 4 / 8]))


def test_what_is_right_does_not_depend_on_the_order_of_the_metrics() -> None:
    """The order of metrics does not change a cell's id."""
    given = {"0": ["no"], "1": ["no"]}
    found = asked([0.9, 0.4], [True, False])
    orders = (["choice_unparsed", "gqa_accuracy", "anls", "ece"], ["ece", "gqa_accuracy", "choice_unparsed", "anls"])
    options = {"0": ("yes", "no"), "1": ("yes", "no")}
    scorers = [AnswerScorer({"0": ["B"], "1": ["B"]}, names, options=options) for names in orders]
    first, second = (scorer.score(found)["ece"].value for scorer in scorers)
    assert first == second == AnswerScorer(given | {"0": ["B"], "1": ["B"]}, ["anls", "ece"]).score(found)["ece"].value
    with pytest.raises(ValueError, match="ece needs a metric beside it that says which answers are right"):
        AnswerScorer({"0": ["B"], "1": ["B"]}, ["choice_unparsed", "ece"], options=options)


def test_answers_without_a_log_probability_are_refused_and_one_that_is_no_number_is_never_sure() -> None:
    scorer = AnswerScorer({"0": ["yes"], "1": ["yes"]}, ["gqa_accuracy", "ece"])
    with pytest.raises(ValueError, match="2 of 2 answers have no log-probability, for example '0'"):
        scorer.score({"0": "yes", "1": "no"})
    found = asked([1.0, 1.0], [True, False])
    found.log_probabilities["1"] = (math.nan, 1)
    assert scorer.score(found)["ece"].value == 0


def test_a_record_s_items_hold_the_log_probability_that_was_asked_for() -> None:
    scorer = AnswerScorer({"0": ["yes"], "1": ["yes"]}, ["gqa_accuracy", "ece", "aurc"])
    found = asked([0.5, 0.25], [True, False])
    found.log_probabilities["1"] = (math.nan, 1)
    first, second = _items(found, scorer.score(found))
    assert first["log_probability"] == {"sum": math.log(0.5), "mean": math.log(0.5) / 2, "tokens": 2}
    assert second["log_probability"] == {"sum": None, "mean": None, "tokens": 1}
    assert first["totals"]["aurc"] == [0.5, 0.0]
    plain = _items(Predictions(found), AnswerScorer({"0": ["yes"], "1": ["yes"]}, ["gqa_accuracy"]).score(found))
    assert all("log_probability" not in item for item in plain)
