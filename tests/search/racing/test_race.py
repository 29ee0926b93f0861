"""A race rarely drops its best candidate, scores no item twice, and takes only the items that it asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmq_sweeps.search.racing.race import Race, p_value, spent

ENDS = (24, 72, 168)


def run(scores: np.ndarray, ends: tuple[int, ...] = ENDS, most: int | None = None) -> Race:
    """Run a race over the rows of ``scores`` ``[candidates, items]``."""
    race = Race(ends, most=most or len(scores))
    for number in range(len(scores)):
        race.add(str(number))
    while (asked := race.next()) is not None:
        race.tell({name: scores[int(name), asked.start : asked.stop] for name in asked.names})
    return race


def lost(draw: Callable[[np.random.Generator], np.ndarray], runs: int = 400) -> float:
    """Return how often the first candidate, which is no worse than any other, was dropped."""
    return sum("0" in run(draw(np.random.default_rng(seed))).dropped for seed in range(runs)) / runs


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=(6, 168)),
        # The same items are hard for all, as for the candidates of a model.
        lambda rng: rng.normal(size=168) * 3 + rng.normal(size=(6, 168)),
        # Right or wrong, mostly alike.
        lambda rng: ((rng.random(168) < 0.8) ^ (rng.random((6, 168)) < 0.1)).astype(float),
        # Skewed: most items are as good as ever, a few are lost.
        lambda rng: -rng.exponential(size=(6, 168)) * (rng.random((6, 168)) < 0.3),
    ],
    ids=["normal", "shared", "binary", "skewed"],
)
def test_the_best_is_dropped_in_at_most_a_twentieth_of_races(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    # All are equally good, which is the hardest case; 400 races: 0.05 and three standard errors.
    assert lost(draw) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_worse_candidates_are_dropped_early() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=168) * 3 + generator.normal(size=(5, 168)) - np.array([0, 0, 1, 2, 3])[:, None]
    race = run(scores)
    assert set(race.running) == {"0", "1"}
    assert race.dropped["4"] == 0
    assert sum(len(scores) for own in race._scores.values() for scores in own.values()) < 5 * 168


def test_rounds_are_disjoint_and_cover_the_items_once() -> None:
    race = Race(ENDS, start=8)
    race.add("a")
    race.add("b")
    seen: list[int] = []
    while (asked := race.next()) is not None:
        seen += range(asked.start, asked.stop)
        race.tell(dict.fromkeys(asked.names, np.arange(asked.start, asked.stop, dtype=float)))
    assert seen == list(range(8, 168))
    assert race.running == ["a", "b"], "equal candidates cannot be told apart"


def test_a_newcomer_is_compared_on_its_own_rounds_only() -> None:
    generator = np.random.default_rng(1)
    race = Race(ENDS)
    race.add("old")
    race.add("other")
    race.tell({name: generator.normal(size=24) for name in ("old", "other")})
    race.add("new")
    assert len(race.difference("new", "old")) == 0
    race.tell({name: generator.normal(size=48) for name in race.running})
    assert len(race.difference("new", "old")) == 48
    assert len(race.difference("other", "old")) == 72


def test_scores_of_another_length_are_refused() -> None:
    race = run(np.zeros((1, 168)))
    assert race.next() is None
    race = Race(ENDS)
    race.add("a")
    race.add("b")
    with pytest.raises(ValueError, match="a: 3 scores for 24 items"):
        race.tell({"a": [1, 2, 3], "b": np.zeros(24)})


def test_no_more_candidates_than_the_error_was_shared_among() -> None:
    race = Race(ENDS, most=2)
    for name in "ab":
        race.add(name)
    with pytest.raises(ValueError, match="has no place for c"):
        race.add("c")


def test_the_error_is_spent_exactly() -> None:
    assert sum(spent(number, 5, 0.05) for number in range(5)) == pytest.approx(0.05)


def test_differences_that_are_all_alike_are_a_sign_test() -> None:
    assert p_value(np.zeros(50)) == 1.0
    assert p_value(np.ones(10)) == 0.5**10
    assert p_value(-np.ones(10)) == 1.0
