"""Intervals: deterministic, fast, right for means and for corpus figures, paired on the same items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.metrics import (
    AnswerScorer,
    CaptionScorer,
    MetricResult,
    intervals,
    paired_difference,
    paired_differences,
)
from mmq_sweeps.metrics.answers.gqa import GqaAccuracy
from mmq_sweeps.metrics.base import Floats, Scores, mean_of_totals
from mmq_sweeps.metrics.captions.bleu import Bleu4
from mmq_sweeps.metrics.intervals import RESAMPLES, PairedDifference, paired_share, resample, result_of
from tests.metrics.conftest import Captions


def mean_result(per_item: Floats, name: str = "") -> MetricResult:
    metric = GqaAccuracy()
    return result_of(metric, tuple(f"{name}{i}" for i in range(len(per_item))), Scores.mean(per_item))


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    per_item = np.random.default_rng(3).normal(2.0, 5.0, 4000)
    low, high = mean_result(per_item).interval
    error = per_item.std() / np.sqrt(len(per_item))
    assert low == pytest.approx(per_item.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(per_item.mean() + 1.96 * error, abs=0.2 * error)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        low, high = mean_result(generator.normal(0.0, 1.0, 200)).interval
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.985


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_interval_lies_within_the_items(values: list[float]) -> None:
    low, high = mean_result(np.array(values)).interval
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_the_same_items_always_give_the_same_interval() -> None:
    per_item = np.random.default_rng(1).random(500)
    first = mean_result(per_item)
    intervals._all_draws.cache_clear()
    assert mean_result(per_item) == first


def test_every_draw_has_as_many_items_as_there_are() -> None:
    assert np.array_equal(resample(np.ones((37, 1))), np.full((RESAMPLES, 1), 37.0))


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = np.random.default_rng(2).random((301, 2))
    at_once = resample(totals)
    monkeypatch.setattr(intervals, "_BLOCK", 301 * 64)
    np.testing.assert_allclose(resample(totals), at_once, rtol=1e-12)


def test_bleu_is_drawn_over_corpus_statistics(published_cells: dict[int, Captions]) -> None:
    good = published_cells[894]
    scorer = CaptionScorer(good.references, ["bleu_4"])
    result = scorer.score(good.predictions)["bleu_4"]
    assert result.interval[0] < result.value < result.interval[1]
    assert abs(np.mean(list(result.per_item.values())) - result.value) > 0.01
    # by hand: the corpus score of each drawn set of images
    generator = np.random.Generator(np.random.PCG64(intervals.SEED))
    drawn = generator.integers(0, 1000, (RESAMPLES, 1000), dtype=np.int32)
    by_hand = Bleu4().aggregate(result.totals[drawn[:50]].sum(axis=1), 1000)
    np.testing.assert_allclose(Bleu4().aggregate(resample(result.totals), 1000)[:50], by_hand, rtol=1e-12)


@pytest.mark.parametrize("metric", ["cider", "bleu_4", "rouge_l"])
def test_paired_difference_of_two_cells(metric: str, published_cells: dict[int, Captions]) -> None:
    a, b = published_cells[678], published_cells[894]
    scorer = CaptionScorer(a.references, [metric])
    worse, better = scorer.score(a.predictions)[metric], scorer.score(b.predictions)[metric]
    difference = paired_difference(worse, better)
    assert difference.value == better.value - worse.value
    assert difference.interval[0] < difference.value < difference.interval[1]
    assert difference.significant
    paired_width = difference.interval[1] - difference.interval[0]
    assert paired_width < sum(result.interval[1] - result.interval[0] for result in (worse, better))


def test_paired_difference_of_a_result_with_itself_is_nothing() -> None:
    result = mean_result(np.random.default_rng(0).random(100))
    difference = paired_difference(result, result)
    assert (difference.value, difference.interval, difference.significant) == (0.0, (0.0, 0.0), False)


def test_items_are_paired_by_name_not_by_place() -> None:
    values = np.random.default_rng(0).random(50)
    a = mean_result(values)
    reordered = MetricResult(a.name, a.value, dict(reversed(a.per_item.items())), a.interval, True)
    assert paired_difference(a, reordered).interval == pytest.approx((0, 0), abs=1e-15)


@pytest.mark.parametrize("block", [intervals._BLOCK, 2 * RESAMPLES])
def test_differences_drawn_at_once_are_those_of_each_pair(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_BLOCK", block)
    generator = np.random.default_rng(4)
    full, *cells = (mean_result(values) for values in generator.random((7, 80)))
    alike = MetricResult(full.name, full.value, dict(reversed(full.per_item.items())), full.interval, True)
    other = mean_result(generator.random(80), name="other")
    found = paired_differences(full, [*cells, alike, other])
    assert isinstance(found[-1], ValueError)
    assert found[-2] == PairedDifference(full.name, 0.0, (0.0, 0.0))
    items = tuple(full.per_item)
    for cell, one in zip(cells, found, strict=False):
        assert isinstance(one, PairedDifference)
        assert one.value == cell.value - full.value
        drawn = [resample(np.array([[result.per_item[item]] for item in items]))[:, 0] / 80 for result in (full, cell)]
        assert one.interval == pytest.approx(np.percentile(drawn[1] - drawn[0], (2.5, 97.5)), rel=1e-12)


def test_differences_of_corpus_figures_drawn_at_once(published_cells: dict[int, Captions]) -> None:
    a, b = published_cells[678], published_cells[894]
    scorer = CaptionScorer(a.references, ["bleu_4"])
    worse, better = (scorer.score(captions.predictions)["bleu_4"] for captions in (a, b))
    assert paired_differences(worse, [better, worse, better])[1].interval == (0.0, 0.0)
    by_hand = Bleu4().aggregate(resample(better.totals), 1000) - Bleu4().aggregate(resample(worse.totals), 1000)
    for one in (paired_differences(worse, [better, worse, better])[2], paired_difference(worse, better)):
        assert one.interval == tuple(np.percentile(by_hand, (2.5, 97.5)))


def test_what_cannot_be_compared_is_named() -> None:
    a, b = mean_result(np.ones(3)), mean_result(np.ones(3), name="other")
    with pytest.raises(ValueError, match="over different items, for example '0'"):
        paired_difference(a, b)
    with pytest.raises(ValueError, match="Cannot compare gqa_accuracy with cider"):
        paired_difference(a, MetricResult("cider", 1.0, a.per_item, (0, 1), True))
    with pytest.raises(ValueError, match="keep the result's totals"):
        paired_difference(a, MetricResult("gqa_accuracy", 0.5, a.per_item, (0, 1), True))


def test_mean_of_totals_is_the_mean() -> None:
    assert mean_of_totals(np.array([[6.0], [3.0]]), 3).tolist() == [2.0, 1.0]


def test_answers_have_intervals_too() -> None:
    answers = {str(i): ["yes"] for i in range(100)}
    result = AnswerScorer(answers, ["gqa_accuracy"]).score({str(i): "yes" if i % 2 else "no" for i in range(100)})
    assert result["gqa_accuracy"].value == 0.5
    assert 0.38 < result["gqa_accuracy"].interval[0] < 0.5 < result["gqa_accuracy"].interval[1] < 0.62


def test_a_share_is_known_better_than_either_figure() -> None:
    whole = np.random.default_rng(1).normal(5.0, 2.0, 500)
    share, (low, high) = paired_share(mean_result(whole), mean_result(0.9 * whole))
    assert [share, low, high] == pytest.approx([0.9] * 3)
    with pytest.raises(ValueError, match="different items"):
        paired_share(mean_result(whole), mean_result(whole, "other"))


GROUPED = ["gqa_accuracy", "pope_f1", "ece", "aurc"]


class Sure(dict[str, str]):
    """Answers with the log-probability of each."""

    log_probabilities: dict[str, tuple[float, int]]


def yes_and_no(count: int, copies: int = 1, groups: bool = True) -> dict[str, MetricResult]:
    """Return results of ``count`` pictures with ``copies`` of a question each, which share a group if ``groups``."""
    generator = np.random.default_rng(8)
    right, said = (np.repeat(generator.choice(["yes", "no"], count), copies) for _ in range(2))
    sure = np.repeat(generator.random(count), copies)
    ids = [f"{place}" for place in range(count * copies)]
    answers = Sure(zip(ids, said, strict=True))
    answers.log_probabilities = {one: (float(np.log(value)), 1) for one, value in zip(ids, sure, strict=True)}
    shared = {one: f"picture {place // copies}" for place, one in enumerate(ids)}
    scorer = AnswerScorer(
        {one: [str(answer)] for one, answer in zip(ids, right, strict=True)}, GROUPED, groups=shared if groups else None
    )
    return scorer.score(answers)


def width(result: MetricResult) -> float:
    return result.interval[1] - result.interval[0]


@pytest.mark.parametrize("metric", GROUPED)
def test_copies_of_an_item_tell_nothing_new_if_they_are_drawn_together(metric: str) -> None:
    """Nine questions with the same answer about a picture count as a single question; drawn apart they would look like more."""
    single, grouped, apart = yes_and_no(60), yes_and_no(60, 9), yes_and_no(60, 9, groups=False)
    assert grouped[metric].value == pytest.approx(single[metric].value, abs=0.02)  # aurc: the curve has more steps
    assert width(grouped[metric]) == pytest.approx(width(single[metric]), rel=0.05)
    assert width(apart[metric]) < 0.6 * width(grouped[metric])


def test_groups_of_one_change_no_bit() -> None:
    grouped, single = yes_and_no(50), yes_and_no(50, groups=False)
    assert {name: result.interval for name, result in grouped.items()} == {
        name: result.interval for name, result in single.items()
    }
    assert not any(result.groups for result in grouped.values())


def test_a_draw_of_groups_is_the_ratio_of_its_sums() -> None:
    """As many groups as there are, drawn with replacement; the figure is the mean of all items in them."""
    sizes = np.array([1, 2, 3, 10])
    owners = np.repeat(np.arange(4), sizes)
    values = np.random.default_rng(9).random(len(owners))
    items = tuple(map(str, range(len(owners))))
    groups = {item: f"g{owner}" for item, owner in zip(items, owners, strict=True)}
    result = result_of(GqaAccuracy(), items, Scores.mean(values), groups)
    drawn = np.random.Generator(np.random.PCG64(intervals.SEED)).integers(0, 4, (RESAMPLES, 4), dtype=np.int32)
    means = [np.concatenate([values[owners == group] for group in draw]).mean() for draw in drawn]
    assert result.interval == pytest.approx(np.percentile(means, (2.5, 97.5)), rel=1e-12)
    assert result.groups == groups


@pytest.mark.parametrize("metric", GROUPED)
def test_differences_are_drawn_by_group_as_well(metric: str) -> None:
    """Differences work with records from before groups were stored, and of a cell with itself."""
    grouped, apart = yes_and_no(40, 5)[metric], yes_and_no(40, 5, groups=False)[metric]
    worse = replace(grouped, value=0.0, per_item=dict.fromkeys(grouped.per_item, 0.0))
    if grouped.totals is not None:
        worse = replace(
            worse,
            totals=np.broadcast_to([0.0, 1.0, 1.0], grouped.totals.shape) if metric == "pope_f1" else grouped.totals,
        )
    found = [paired_difference(worse, one) for one in (grouped, replace(apart, groups={}))]
    assert found[0].interval == found[1].interval
    ungrouped = paired_difference(replace(worse, groups={}), replace(apart, groups={}))
    if metric in ("gqa_accuracy", "pope_f1"):
        assert found[0].interval[1] - found[0].interval[0] > 1.5 * (ungrouped.interval[1] - ungrouped.interval[0])
    assert paired_difference(grouped, grouped).interval == (0.0, 0.0)


def test_a_share_is_drawn_by_group_as_well() -> None:
    one = yes_and_no(40, 5)["gqa_accuracy"]
    half = replace(one, value=one.value / 2, per_item={item: value / 2 for item, value in one.per_item.items()})
    assert [*paired_share(one, half)[1]] == pytest.approx([0.5, 0.5])
