"""The minimal sum of damages equals that of brute force, for every algorithm."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmq_sweeps.search.prediction import allocation
from mmq_sweeps.search.prediction.allocation import frontier, optimum, ranked


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    damages = [np.array(draw(st.lists(st.integers(0, 50), min_size=n, max_size=n)), float) for n in lengths]
    sizes = [np.array(draw(st.lists(st.integers(1, 30), min_size=n, max_size=n)), np.int64) for n in lengths]
    return damages, sizes


def every(damages: list[np.ndarray], sizes: list[np.ndarray]) -> list[tuple[int, float, tuple[int, ...]]]:
    return [
        (
            sum(int(own[place]) for own, place in zip(sizes, point, strict=True)),
            sum(float(own[place]) for own, place in zip(damages, point, strict=True)),
            point,
        )
        for point in itertools.product(*(range(len(own)) for own in sizes))
    ]


@given(problems(), st.integers(1, 150))
@settings(max_examples=60, deadline=None)
def test_a_frontier_has_the_optimum_of_every_budget(problem: tuple, budget: int) -> None:
    damages, sizes = problem
    found = frontier(damages, sizes, base_bits=7)
    assert found.exact
    inside = [damage for bits, damage, _ in every(damages, sizes) if bits + 7 <= budget]
    place = found.within(budget)
    assert (place is None) == (not inside)
    if place is not None:
        assert found.damages[place] == pytest.approx(min(inside))
        told = {point: (bits + 7, damage) for bits, damage, point in every(damages, sizes)}
        assert told[found.points[place]] == (found.bits[place], pytest.approx(found.damages[place]))


@given(problems(), st.integers(1, 150))
# The thinned frontier has the optimum, and a worse point has room to spare.
@example(
    (
        [np.array([0.0, 0.0]), np.array([1.0, 1.0, 0.0, 1.0]), np.array([3.0, 0.0]), np.array([0.0, 0.0, 0.0])],
        [np.array([4, 4]), np.array([1, 1, 2, 1]), np.array([1, 3]), np.array([1, 1, 1])],
    ),
    8,
)
@settings(max_examples=60, deadline=None)
def test_the_optimum_is_that_of_brute_force(problem: tuple, budget: int) -> None:
    damages, sizes = problem
    # A frontier of two pairs leaves the rest to bounds.
    with patch.object(allocation, "COARSE", 2):
        found = optimum(damages, sizes, budget)
    inside = [damage for bits, damage, _ in every(damages, sizes) if bits <= budget]
    assert (found is None) == (not inside)
    if found is not None:
        assert sum(int(own[place]) for own, place in zip(sizes, found, strict=True)) <= budget
        assert sum(own[place] for own, place in zip(damages, found, strict=True)) == pytest.approx(min(inside))


def test_alternatives_of_a_large_space_fit_and_differ() -> None:
    generator = np.random.default_rng(1)
    sizes = [np.array([2, 3, 4, 8], np.int64) * int(generator.integers(100, 2000)) for _ in range(24)]
    damages = [generator.exponential() * np.array([1.0, 0.2, 0.05, 0.0]) for _ in sizes]
    budget = int(sum(own[1] for own in sizes) * 1.1)
    found = ranked(damages, sizes, budget, 5, distance=3)
    assert len(found) == 5
    assert found[0][0] == optimum(damages, sizes, budget)
    assert [cost for _, cost in found] == sorted(cost for _, cost in found)
    assert found[-1][1] < 1.5 * found[0][1]
    for point, _ in found:
        assert sum(int(own[place]) for own, place in zip(sizes, point, strict=True)) <= budget
    for (one, _), (other, _) in itertools.combinations(found, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 3


def test_ranked_points_are_those_of_brute_force_best_first() -> None:
    generator = np.random.default_rng(3)
    damages = [generator.uniform(0, 5, 7) for _ in range(3)]
    sizes = [generator.integers(10, 100, 7) for _ in range(3)]
    inside = sorted((damage, point) for bits, damage, point in every(damages, sizes) if bits <= 150)
    assert [point for point, _ in ranked(damages, sizes, 150, 10)] == [point for _, point in inside[:10]]


def test_nothing_fits_a_budget_below_the_least() -> None:
    sizes = [np.array([5, 9], np.int64)] * 2
    damages = [np.array([1.0, 0.0])] * 2
    assert ranked(damages, sizes, 9, 3) == []
    assert optimum(damages, sizes, 9) is None
    assert frontier(damages, sizes).within(9) is None


def test_a_thinned_frontier_keeps_its_ends_and_stays_near_the_optimum() -> None:
    generator = np.random.default_rng(0)
    sizes = [generator.integers(1000, 50_000, 6).astype(np.int64) for _ in range(12)]
    damages = [generator.exponential(1.0, 6) / own for own in sizes]
    exact, thinned = frontier(damages, sizes, pairs=10**7), frontier(damages, sizes, pairs=100)
    assert exact.exact
    assert not thinned.exact
    assert thinned.bits[0] == exact.bits[0]
    for bits in np.linspace(exact.bits[0], exact.bits[-1], 20).astype(int):
        best, near = exact.within(int(bits)), thinned.within(int(bits))
        assert best is not None
        assert near is not None
        assert exact.damages[best] <= thinned.damages[near] <= exact.damages[best] + 0.02 * exact.damages[0]
