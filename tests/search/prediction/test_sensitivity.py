"""Priors of options: from errors of units, and from divergences between cells."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmq_sweeps.search.prediction.sensitivity import divergence, error_table, full_precision, with_divergences
from tests.search.spaces import space_of


def told(weight: float, output: float | None) -> dict[str, float | None]:
    return {"weight_error": weight, "output_error": output}


def test_without_errors_an_option_costs_what_rounding_does() -> None:
    (table, other) = error_table(space_of([100, 300]))
    assert table[0] / table[1] == pytest.approx(4.0)
    assert table[-1] == 0.0
    assert other[0] == pytest.approx(3 * table[0])


def test_output_errors_count_and_weight_errors_are_brought_to_their_size() -> None:
    space = space_of([100], widths=(2, 3, 16))
    (outputs,) = error_table(space, [[told(0.5, 0.2), told(0.1, 0.03), None]])
    assert outputs.tolist() == pytest.approx([0.2, 0.03, 0.0])
    (mixed,) = error_table(space, [[told(0.5, None), told(0.1, 0.03), None]])
    assert mixed.tolist() == pytest.approx([0.5 * 0.3, 0.03, 0.0])
    (weights,) = error_table(space, [[told(0.5, None), told(0.1, None), None]])
    assert weights.tolist() == pytest.approx([0.5, 0.1, 0.0])


def test_an_unknown_option_is_in_proportion_to_the_known() -> None:
    (table,) = error_table(space_of([100], widths=(2, 3, 4)), [[told(0.4, 0.4), None, told(0.025, 0.025)]])
    assert table[1] == pytest.approx(0.1)


def test_divergences_scale_an_axis() -> None:
    tables = with_divergences([np.array([0.4, 0.1, 0.0]), np.array([0.4, 0.1, 0.0])], {0: (0, 0.02)})
    assert tables[0].tolist() == pytest.approx([0.02, 0.005, 0.0])
    assert tables[1].tolist() == [0.4, 0.1, 0.0]


def prediction(*places: list[float]) -> str:
    likeliest = [{str(token): float(np.log(share)) for token, share in enumerate(place) if share} for place in places]
    return json.dumps({"log_likelihood": -1.0, "likeliest": likeliest})


def test_a_divergence_is_that_of_the_distributions() -> None:
    full, other = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    expected = sum(p * np.log(p / q) for p, q in zip(full, other, strict=True))
    found = divergence({"a": prediction(full, full)}, {"a": prediction(other, full)})
    assert found == pytest.approx(expected / 2, abs=1e-4)
    assert divergence({"a": prediction(full)}, {"a": prediction(full)}) == pytest.approx(0.0, abs=1e-9)


def test_tokens_outside_the_likeliest_make_it_a_lower_bound() -> None:
    full, other = [0.5, 0.3, 0.1, 0.1], [0.2, 0.3, 0.1, 0.4]
    expected = sum(p * np.log(p / q) for p, q in zip(full, other, strict=True))
    found = divergence({"a": prediction([0.5, 0.3, 0, 0])}, {"a": prediction([0, 0.3, 0, 0.4])})
    assert 0 <= found <= expected + 1e-9


def test_full_precision_needs_an_option_of_every_axis() -> None:
    assert full_precision(space_of([1, 2])) == (6, 6)
    assert full_precision(space_of([1, 2], widths=(2, 3))) is None
