"""VQA and GQA accuracy: the official normalization case by case, soft accuracy by hand, figures by kind of answer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics import AnswerScorer
from mmq_sweeps.metrics.answers.normalize import normalize_answer

TABLE = Path(__file__).with_name("vqa_normalization.tsv")


def cases() -> list[tuple[str, str, str]]:
    """Return rule, answer and normalized text from the table, which was written by hand, not by our code."""
    lines = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [(rule, json.loads(answer), json.loads(compared)) for rule, answer, compared in lines]


def test_the_table_has_enough_distinct_cases_of_every_rule() -> None:
    table = cases()
    answers = [answer for _, answer, _ in table]
    assert len(set(answers)) == len(answers) >= 200
    assert all(count >= 5 for count in Counter(rule for rule, *_ in table).values())


@pytest.mark.parametrize(("rule", "answer", "expected"), cases(), ids=range(len(cases())))
def test_normalization(rule: str, answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected, rule


@pytest.mark.parametrize(
    ("given_answers", "answer", "expected"),
    [
        (["yes"] * 10, "yes", 1.0),
        (["yes"] * 10, "Yes.", 1.0),
        (["yes"] * 10, "no", 0.0),
        (["yes"] * 1 + ["no"] * 9, "yes", 0.3),  # 9 annotators see one match: 9 * 1/3 / 10
        (["yes"] * 2 + ["no"] * 8, "yes", 0.6),  # (8 * 2/3 + 2 * 1/3) / 10
        (["yes"] * 3 + ["no"] * 7, "yes", 0.9),  # (7 * 1 + 3 * 2/3) / 10
        (["yes"] * 4 + ["no"] * 6, "yes", 1.0),
        (["t-shirt"] * 10, "t-shirt", 0.0),  # all alike: the annotators' answers are left as they are
        (["t-shirt"] * 9 + ["shirt"], "t-shirt", 1.0),  # else their signs go
        (["two"] * 9 + ["2"], "two", 0.3),  # but numbers are not folded: released annotations have digits
        ([""] * 10, "the", 1.0),
    ],
)
def test_soft_accuracy(given_answers: list[str], answer: str, expected: float) -> None:
    result = AnswerScorer({"q": given_answers}).score({"q": answer})["vqa_accuracy"]
    assert result.value == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=10, max_size=10), st.sampled_from(["red", "blue"]))
def test_soft_accuracy_is_the_mean_over_subsets_of_nine(answers: list[str], answer: str) -> None:
    subsets = [answers[:i] + answers[i + 1 :] for i in range(10)]
    expected = sum(min(1.0, subset.count(answer) / 3) for subset in subsets) / 10
    result = AnswerScorer({"q": answers}).score({"q": answer})["vqa_accuracy"]
    assert result.value == pytest.approx(expected, abs=1e-12)


def test_figures_by_kind_of_answer() -> None:
    answers = {"1": ["yes"] * 10, "2": ["no"] * 10, "3": ["2"] * 10, "4": ["red"] * 9 + ["pink"]}
    types = {"1": "yes/no", "2": "yes/no", "3": "number", "4": "other"}
    result = AnswerScorer(answers, types=types).score({"1": "yes", "2": "yes", "3": "two", "4": "pink"})["vqa_accuracy"]
    assert result.per_item == pytest.approx({"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.3})
    assert result.by_type == pytest.approx({"yes/no": 0.5, "number": 1.0, "other": 0.3})
    assert result.value == pytest.approx(0.575)


def test_gqa_is_exact_match_of_normalized_answers() -> None:
    answers = {"1": ["a dog"], "2": ["two"], "3": ["t-shirt"], "4": ["left"]}
    result = AnswerScorer(answers, ["gqa_accuracy"]).score({"1": "The dog.", "2": "2", "3": "t shirt", "4": "right"})
    assert result["gqa_accuracy"].per_item == {"1": 1.0, "2": 1.0, "3": 1.0, "4": 0.0}


def test_too_few_annotators_for_any_answer_to_be_right() -> None:
    with pytest.raises(ValueError, match=r"'q' has 1\. For one right answer use gqa_accuracy"):
        AnswerScorer({"q": ["yes"]})


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="'q' needs a list of at least one answer"):
        AnswerScorer({"q": "yes"}, ["gqa_accuracy"])
    with pytest.raises(ValueError, match="no answers"):
        AnswerScorer({}, ["gqa_accuracy"])
    with pytest.raises(ValueError, match="1 of 1 items have no type, for example 'q'"):
        AnswerScorer({"q": ["yes"]}, ["gqa_accuracy"], types={})
    with pytest.raises(ValueError, match="1 answers are for items that were not asked for, for example 'z'"):
        AnswerScorer({"q": ["yes"]}, ["gqa_accuracy"]).score({"q": "yes", "z": "no"})
    with pytest.raises(ValueError, match="'cider' needs captions; AnswerScorer has answers"):
        AnswerScorer({"q": ["yes"]}, ["cider"])
