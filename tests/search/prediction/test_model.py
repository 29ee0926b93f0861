"""The damage model recovers the damage behind made scores, and its stated uncertainty is right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmq_sweeps.search.prediction.model import DamageModel, Observation
from mmq_sweeps.search.space import Point

PRIOR = [np.array([0.1, 0.02, 0.004, 0.0])] * 3
TRUTH = np.array([2.0, 8.0, 0.5])


def share(point: Point, bend: float = 0.0) -> float:
    damage = sum(float(c * own[place]) for c, own, place in zip(TRUTH, PRIOR, point, strict=True))
    return float(np.exp(-(damage + bend * damage**2)))


def observed(points: list[Point | None], bend: float = 0.0, noise: float = 0.0, items: int = 0) -> list[Observation]:
    generator = np.random.default_rng(0)
    means = [5.0 * (1.0 if point is None else share(point, bend)) for point in points]
    return [
        Observation(point, items, mean + noise * generator.normal(), noise**2)
        for point, mean in zip(points, means, strict=True)
    ]


EVERY = list(itertools.product(range(4), repeat=3))
FIRST: list[Point | None] = [None, (0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 3, 3), (3, 0, 3), (3, 3, 0)]


def test_seven_cells_rank_all_of_a_sum() -> None:
    model = DamageModel(PRIOR, [0, 1, 2], exponent=1.1)
    model.fit(observed(FIRST, noise=0.01))
    predicted = np.array([model.relative(point) for point in EVERY])
    truth = np.array([share(point) for point in EVERY])
    assert np.abs(predicted - truth).max() < 0.03
    assert EVERY[int(np.argmin(predicted))] == (0, 0, 0)


def test_a_damage_that_is_more_than_its_parts_is_learned() -> None:
    plain, bent = DamageModel(PRIOR, [0, 1, 2]), DamageModel(PRIOR, [0, 1, 2])
    # A single set of widths could as well have a steeper exponent.
    points = [*FIRST, *EVERY[::3]]
    plain.fit(observed(points))
    bent.fit(observed(points, bend=0.6))
    assert abs(plain._parameters.bend) < 0.1
    assert bent._parameters.bend > 0.3
    point = (0, 0, 3)
    assert bent.relative(point) == pytest.approx(share(point, 0.6), abs=0.03)


def test_a_point_is_believed_to_the_degree_that_it_was_measured() -> None:
    model = DamageModel(PRIOR, [0, 1, 2])
    odd = Observation((1, 0, 1), 0, 5.0, 1e-6)
    model.fit([*observed(FIRST, noise=0.01), odd])
    assert abs(model.estimate((1, 0, 1)) - 1.0) < abs(model.relative((1, 0, 1)) - 1.0)
    doubtful = DamageModel(PRIOR, [0, 1, 2])
    doubtful.fit([*observed(FIRST, noise=0.01), Observation((1, 0, 1), 0, 5.0, 4.0)])
    assert doubtful.estimate((1, 0, 1)) == pytest.approx(doubtful.relative((1, 0, 1)), abs=0.02)


def test_sets_of_items_may_be_harder_than_others() -> None:
    easier = [
        Observation(own.point, 1, own.mean * 1.2, own.variance) for own in observed([(1, 1, 1), (0, 1, 1)], noise=0.01)
    ]
    model = DamageModel(PRIOR, [0, 1, 2])
    model.fit([*observed(FIRST, noise=0.01), *easier])
    assert model.estimate((1, 1, 1)) == pytest.approx(share((1, 1, 1)), abs=0.03)


def test_the_expected_gain_shrinks_as_cells_are_measured() -> None:
    few, many = (DamageModel(PRIOR, [0, 1, 2]) for _ in range(2))
    few.fit(observed(FIRST, noise=0.3))
    many.fit(observed([*FIRST, *EVERY[10:40]], noise=0.01))
    worse, better = (1, 0, 1), (1, 1, 0)
    assert few.gain(worse, better) > many.gain(worse, better) >= 0
    assert many.gain(better, worse) == pytest.approx(share(better) - share(worse), abs=0.02)


def test_axes_of_a_part_share_what_is_learned() -> None:
    prior = [np.array([0.1, 0.0])] * 4
    model = DamageModel(prior, [0, 0, 1, 1])
    lowered = [(0, 0, 1, 1), (1, 1, 0, 0)]
    model.fit(
        [Observation(None, 0, 1.0, 0.0), Observation(lowered[0], 0, 0.5, 1e-5), Observation(lowered[1], 0, 0.9, 1e-5)]
    )
    tables = model.tables()
    assert tables[0][0] == pytest.approx(tables[1][0], rel=0.05)
    assert tables[0][0] > 3 * tables[2][0]


def test_a_point_that_scores_nothing_is_bad_but_no_error() -> None:
    model = DamageModel(PRIOR, [0, 1, 2])
    model.fit([*observed(FIRST[:1] + FIRST[2:], noise=0.01), Observation((0, 0, 0), 0, 0.0, 0.0)])
    assert model.relative((0, 0, 0)) < model.relative((1, 1, 1))
    assert np.isfinite(model.gain((0, 0, 0), (1, 1, 1)))


def test_a_method_whose_errors_look_small_is_found_out() -> None:
    """The second method has half the errors at both widths, and eight times the damage."""
    prior = [np.array([0.1, 0.02, 0.05, 0.01, 0.0])] * 2
    methods = [np.array([0, 0, 1, 1, 0])] * 2
    truth = np.array([0.2, 0.04, 1.6, 0.32, 0.0])
    points: list[Point | None] = [None, *((place, place) for place in range(4)), (0, 4), (4, 0)]
    means = [5.0 if point is None else 5.0 * float(np.exp(-truth[list(point)].sum())) for point in points]
    model = DamageModel(prior, [0, 1], methods=methods)
    model.fit([Observation(point, 0, mean, 1e-4) for point, mean in zip(points, means, strict=True)])
    for table in (*model.tables(), *model.corrected_prior):
        assert table[0] < table[2]
        assert table[1] < table[3]
    assert model.relative((1, 2)) < model.relative((1, 0))
