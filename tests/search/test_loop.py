"""Whole searches on made scores: their answers, their cost, and resuming them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.metrics.base import Scores
from mmq_sweeps.metrics.intervals import result_of
from mmq_sweeps.metrics.names import load_metric
from mmq_sweeps.search.loop import Search
from mmq_sweeps.search.measuring import Answer, Items, Measurement, Outcome
from mmq_sweeps.search.settings import Settings
from mmq_sweeps.search.space import Budget, Option, Point, Space
from tests.search.spaces import space_of

METRIC = "cider"
EVALUATED = 400


class World:
    """Scores of points as from a model: each item has a level of its own, and each point its noise on that."""

    def __init__(self, space: Space, costs: Sequence[float], noise: float = 0.5, seed: int = 0) -> None:
        self.space, self.costs, self.noise, self.seed = space, costs, noise, seed
        self.asked: list[Measurement] = []
        self.bad = 1.0

    def share(self, point: Point | None) -> float:
        if point is None:
            return 1.0
        options = [axis.options[place] for axis, place in zip(self.space.axes, point, strict=True)]
        damage = sum(
            0.0 if one.full else (self.bad if one.method else 1.0) * cost * 4.0 ** (2 - one.bits)
            for one, cost in zip(options, self.costs, strict=True)
        )
        return float(np.exp(-damage - 0.2 * damage**2))

    def measure(self, one: Measurement) -> Outcome:
        self.asked.append(one)
        start, stop = (one.items.start, one.items.stop) if one.items.split == "search" else (10_000, 10_000 + EVALUATED)
        assert stop is not None
        levels = np.random.default_rng([self.seed, 1]).normal(5, 2, 20_000)[start:stop]
        name = hash(one.point) % 2**31
        own = np.random.default_rng([self.seed, 2, name]).normal(0, self.noise, 20_000)[start:stop]
        scores = levels * self.share(one.point) + (0 if one.point is None else own)
        ids = tuple(f"{place}" for place in range(start, stop))
        bits = None if one.point is None else self.space.bits(one.point)
        return Outcome(one, result_of(load_metric(METRIC), ids, Scores.mean(scores)), bits, 1.0)

    def best(self, bits: int) -> Point:
        return max((point for point in self.space.points() if self.space.bits(point) <= bits), key=self.share)


def run(search: Search, measure: Callable[[Measurement], Outcome]) -> list[Answer]:
    while batch := search.ask():
        search.tell([measure(one) for one in reversed(batch)])
    return search.answers()


def budgets(space: Space, *values: float) -> list[Budget]:
    return [Budget.of_bpw(value, space) for value in values]


@pytest.fixture
def space() -> Space:
    return space_of([3000, 2000, 4000])


COSTS = (0.1, 0.05, 0.4)


def test_a_search_finds_what_the_grid_would_at_a_fraction_of_its_items(space: Space) -> None:
    asked = budgets(space, 4.5, 5, 6, 7)
    lost = []
    for seed in range(2):
        world = World(space, COSTS, seed=seed)
        search = Search(space, asked, Settings(METRIC, seed))
        for answer in run(search, world.measure):
            assert answer.bits <= answer.budget.bits
            lost.append(world.share(world.best(answer.budget.bits)) - world.share(answer.point))
        assert search.costs()["items"] < space.count * EVALUATED / 25
    assert np.mean(lost) < 0.004
    assert max(lost) < 0.02


def test_no_item_is_asked_of_a_point_twice(space: Space) -> None:
    world = World(space, COSTS)
    run(Search(space, budgets(space, 4.5, 5, 6, 7), Settings(METRIC)), world.measure)
    assert len(set(world.asked)) == len(world.asked)
    ranges: dict[Point | None, set[int]] = {}
    for one in world.asked:
        if one.items.split == "search":
            own = set(range(one.items.start, one.items.stop or 0))
            assert not ranges.setdefault(one.point, set()) & own
            ranges[one.point] |= own


def test_larger_budgets_are_not_predicted_worse(space: Space) -> None:
    world = World(space, COSTS)
    search = Search(space, budgets(space, 4.2, 4.5, 5, 6, 7, 8), Settings(METRIC))
    run(search, world.measure)
    frontier = search.predicted()
    assert frontier.exact
    assert (np.diff(frontier.damages) < 0).all()
    assert (np.diff(frontier.bits) > 0).all()


def test_a_search_that_is_run_again_asks_for_the_same_and_answers_the_same(space: Space) -> None:
    first = World(space, COSTS)
    settings = Settings(METRIC, 3)
    answers = run(Search(space, budgets(space, 4.5, 6), settings), first.measure)
    known = {one: first.measure(one) for one in list(first.asked)}
    again = Search(space, budgets(space, 4.5, 6), settings)
    assert [answer.point for answer in run(again, known.__getitem__)] == [answer.point for answer in answers]


def test_the_answer_is_compared_with_uniform_and_full_precision(space: Space) -> None:
    world = World(space, COSTS)
    (answer,) = run(Search(space, budgets(space, 5), Settings(METRIC)), world.measure)
    assert answer.uniform in space.uniform()
    assert space.bits(answer.uniform) <= answer.budget.bits
    assert answer.from_uniform is not None
    assert answer.from_uniform.value > 0
    assert answer.from_full.value < 0
    assert answer.quality.count == EVALUATED
    assert answer.bpw == pytest.approx(space.bpw(answer.point))


def test_the_search_split_is_apart_from_the_final_figures(space: Space) -> None:
    world = World(space, COSTS)
    run(Search(space, budgets(space, 5), Settings(METRIC)), world.measure)
    final = [one for one in world.asked if one.stage == "final"]
    assert all(one.items == Items("evaluation") for one in final)
    assert all(one.items.split == "search" for one in world.asked if one.stage != "final")


def test_a_budget_with_one_point_is_answered_without_a_race(space: Space) -> None:
    world = World(space, COSTS)
    least = Budget("max_bpw=least", space.least_bits)
    search = Search(space, [least], Settings(METRIC))
    (answer,) = run(search, world.measure)
    assert answer.point == space.smallest
    assert search.costs()["stages"]["race"]["cells"] == 0


def test_a_cell_that_fails_is_never_the_answer(space: Space) -> None:
    world = World(space, COSTS)
    budget = budgets(space, 5)[0]
    best = world.best(budget.bits)

    def failing(one: Measurement) -> Outcome:
        return Outcome(one, None) if one.point == best else world.measure(one)

    (answer,) = run(Search(space, [budget], Settings(METRIC)), failing)
    assert answer.point != best


@pytest.mark.parametrize(
    ("score", "told"), [(0.0, "scores nothing on 24 items"), (0.004, "scores at most 0.004 of 1 on 24")]
)
def test_a_search_of_nothing_is_told(space: Space, score: float, told: str) -> None:
    def nothing(one: Measurement) -> Outcome:
        ids = tuple(map(str, range(one.items.start, one.items.stop or 0)))
        scores = np.ones(len(ids)) if one.point is None else np.full(len(ids), score)
        return Outcome(one, result_of(load_metric(METRIC), ids, Scores.mean(scores)))

    with pytest.raises(ConfigError, match=f"every quantized candidate {told}"):
        run(Search(space, budgets(space, 5), Settings(METRIC)), nothing)


def test_outcomes_that_are_missing_are_told(space: Space) -> None:
    search = Search(space, budgets(space, 5), Settings(METRIC))
    with pytest.raises(ValueError, match="outcomes are missing"):
        search.tell([])


def test_a_small_split_shares_its_items_among_the_stages(space: Space) -> None:
    settings = Settings(METRIC).within(60)
    assert settings.items <= 60
    world = World(space, COSTS)
    run(Search(space, budgets(space, 5), settings), world.measure)
    assert max(one.items.stop or 0 for one in world.asked if one.items.split == "search") <= 60
    with pytest.raises(ConfigError, match="too few"):
        Settings(METRIC).within(5)


def test_finer_axes_are_asked_for_likelihoods_one_by_one() -> None:
    space = space_of([100] * 4)
    axes = tuple(axis.__class__(**{**vars(axis), "part": "one"}) for axis in space.axes)
    finer = Space("made", "unit", axes, space.base_bits, space.parameters)
    forced = [one for one in Search(finer, budgets(finer, 13), Settings(METRIC)).ask() if one.items.teacher_forced]
    assert len(forced) == 5
    assert forced[0].point is None
    assert not any(
        one.items.teacher_forced for one in Search(finer, budgets(finer, 13), Settings(METRIC, forced=0)).ask()
    )


@pytest.mark.parametrize("share", [0.8, 0.9, 0.97])
def test_the_smallest_point_that_keeps_a_share_of_full_precision(space: Space, share: float) -> None:
    world = World(space, COSTS)
    (answer,) = run(Search(space, [Budget.of_quality(share, space)], Settings(METRIC)), world.measure)
    assert answer.reached
    assert world.share(answer.point) > share - 0.02
    keeping = min(space.bits(point) for point in space.points() if world.share(point) >= share)
    assert answer.bits < 1.15 * keeping


def test_a_share_is_a_share(space: Space) -> None:
    with pytest.raises(ConfigError, match="min_quality=5: is the share of full precision"):
        Budget.of_quality(5, space)


def test_what_is_left_of_full_precision_is_stated(space: Space) -> None:
    world = World(space, COSTS)
    (answer,) = run(Search(space, budgets(space, 5), Settings(METRIC)), world.measure)
    kept, (low, high) = answer.kept
    assert low <= kept <= high
    assert kept == pytest.approx(1 + answer.from_full.value / (answer.quality.value - answer.from_full.value))


def test_a_bad_method_is_not_taken_for_the_best_uniform_one() -> None:
    """Two methods have the same sizes; by the known errors of their units, the worse looks ten times better."""
    made = space_of([3000, 2000, 4000], widths=(2, 4))
    bad = tuple(Option(bits, {"_target_": "bad"}, label=f"bad {bits}") for bits in (2, 4))
    axes = tuple(replace(axis, options=(*axis.options, *bad), stored_bits=axis.stored_bits * 2) for axis in made.axes)
    space = replace(made, axes=axes)
    world = World(space, COSTS)
    world.bad = 8.0

    def error(option: Option) -> dict[str, float | None]:
        return {"weight_error": 4.0**-option.bits / (10 if option.method else 1), "output_error": None}

    known = [[error(option) for option in axis.options] for axis in space.axes]
    (answer,) = run(Search(space, budgets(space, 4), Settings(METRIC), lambda: known), world.measure)
    assert answer.uniform == (0, 0, 0)
    assert all(space.axes[number].options[place].method is None for number, place in enumerate(answer.point))
