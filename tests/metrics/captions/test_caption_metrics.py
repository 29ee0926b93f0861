"""Caption metrics equal pycocoevalcap's, image by image and as a whole."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics import CaptionScorer
from mmq_sweeps.metrics.captions.meteor import score_of_statistics
from tests.metrics.conftest import NASTY, Captions, Pycoco, nasty_cell

# Tests that need METEOR come last: its two programs read their tables meanwhile.
ALL = ["cider", "cider_d", "meteor", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]
QUICK = [name for name in ALL if name != "meteor"]
WORDS = [
    "a",
    "dog",
    "dogs",
    "runs",
    "it's",
    "don't",
    "U.S.",
    "b.",
    "A",
    "é",
    "日本",
    "🙂",
    "|||",
    "-",
    "5",
    "no.",
    "...",
    '"',
    "<b>",
]


def check_equal(cell: Captions, pycoco: Pycoco, names: list[str]) -> None:
    results = CaptionScorer(cell.references, names).score(cell.predictions)
    for name, expected in pycoco.scores(cell, names).items():
        result = results[name]
        assert list(result.per_item) == list(cell.references)
        np.testing.assert_allclose(
            list(result.per_item.values()), expected.per_item, rtol=1e-12, atol=1e-12, err_msg=name
        )
        assert result.value == pytest.approx(expected.value, rel=1e-12, abs=1e-12), name
        if name == "cider":
            assert list(result.per_item.values()) == expected.per_item, "it sums as pycocoevalcap sums"


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=12, max_size=40))
def test_generated_captions(pycoco: Pycoco, captions: list[str]) -> None:
    check_equal(nasty_cell(captions), pycoco, QUICK)


def test_other_line_breaks_do_not_move_the_next_caption() -> None:
    references = {"a": ["a dog"], "b": ["a cat"], "c": ["a bird"]}
    broken = {"a": "a\rdog\u2028\x0b\x0c", "b": "a cat", "c": "a bird"}
    plain = {"a": "a dog", "b": "a cat", "c": "a bird"}
    scorer = CaptionScorer(references, ["rouge_l"])
    assert scorer.score(broken) == scorer.score(plain)


def test_an_attribute_left_open_does_not_swallow_the_next_caption() -> None:
    captions = {"a": "<a b='x", "b": "y'> a cat", "c": "a bird"}
    scores = CaptionScorer({image: ["a cat"] for image in captions}, ["rouge_l"]).score(captions)["rouge_l"].per_item
    assert scores["b"] > scores["c"] > scores["a"] == 0


def test_a_lone_surrogate_is_no_reason_to_stop() -> None:
    result = CaptionScorer({"a": ["a dog"], "b": ["a cat"]}).score({"a": "a dog \ud83d", "b": "a cat"})["cider"]
    assert result.per_item["a"] > 0


def test_missing_and_extra_captions_are_errors() -> None:
    scorer = CaptionScorer({"a": ["a dog"], "b": ["a cat"]})
    with pytest.raises(ValueError, match="1 of 2 items have no caption, for example 'b'"):
        scorer.score({"a": "a dog"})
    with pytest.raises(ValueError, match="not asked for, for example 'z'"):
        scorer.score({"a": "a dog", "b": "a cat", "z": "a fish"})
    with pytest.raises(ValueError, match="The caption of 'b' must be text, not NoneType"):
        scorer.score({"a": "a dog", "b": None})


@pytest.mark.parametrize("references", [{}, {"a": []}, {"a": "a dog"}])
def test_references_must_be_lists_that_hold_something(references: dict) -> None:
    with pytest.raises(ValueError, match="reference"):
        CaptionScorer(references)


def test_a_metric_of_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="'vqa_accuracy' needs answers; CaptionScorer has captions"):
        CaptionScorer({"a": ["a dog"]}, ["vqa_accuracy"])


def test_published_captions(published: Captions, pycoco: Pycoco) -> None:
    check_equal(published, pycoco, ALL)


def test_published_figures_to_the_last_digit(published_cells: dict[int, Captions]) -> None:
    results = {
        number: CaptionScorer(cell.references, ["cider", "meteor"]).score(cell.predictions)
        for number, cell in published_cells.items()
    }
    assert results[894]["cider"].value == 1.2852764152502318
    assert results[894]["meteor"].value == 0.2785208443350772
    assert results[678]["cider"].value == 1.195565473292705
    assert results[678]["meteor"].value == 0.26693491760570304
    assert results[1050]["cider"].value == pytest.approx(0.0005329994166209, abs=1e-16)


def test_nasty_captions(pycoco: Pycoco) -> None:
    check_equal(nasty_cell(NASTY), pycoco, ALL)


def test_nasty_captions_in_another_order(pycoco: Pycoco) -> None:
    check_equal(nasty_cell(random.Random(2).sample(NASTY, len(NASTY))), pycoco, ALL)


def test_one_image(pycoco: Pycoco) -> None:
    check_equal(Captions({"7": "a dog"}, {"7": ["a dog runs", "a cat"]}), pycoco, ALL)


def test_meteor_of_statistics_is_the_programs(published: Captions) -> None:
    result = CaptionScorer(published.references, ["meteor"]).score(published.predictions)["meteor"]
    assert result.totals is not None
    np.testing.assert_allclose(
        score_of_statistics(result.totals), list(result.per_item.values()), rtol=1e-9, atol=1e-12
    )
    assert score_of_statistics(result.totals.sum(axis=0, keepdims=True))[0] == pytest.approx(result.value, rel=1e-9)
