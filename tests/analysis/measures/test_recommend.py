from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from analysis.load import load
from analysis.measures.recommend import Recommendation, recommend
from tests.analysis.grids import PARTS, stored

WIDTHS = (2, 3, 4, 8)
PARAMETERS = 400


def bpw(bits: dict[str, int]) -> float:
    """Compute bits per weight as the paper does: every part has 100 weights of 400 parameters."""
    return 16 - sum((16 - width) * 100 for width in bits.values()) / PARAMETERS


def score(bits: dict[str, int]) -> float:
    return 1.0 - sum((8 - width) ** 2 for width in bits.values()) / 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store a grid without its cells of 4 bits in vision and 4 in language."""
    rows = [dict(zip(PARTS, widths, strict=True)) for widths in itertools.product(WIDTHS, repeat=3)]
    kept = [bits for bits in rows if not (bits["vision"] == 4 and bits["language"] == 4)]
    folder = tmp_path_factory.mktemp("grid")
    stored(folder, {"none": [({}, 16.0, 1.0)], "gptq": [(bits, bpw(bits), score(bits)) for bits in kept]})
    return folder


def test_the_best_within_a_budget_of_bits(store: Path) -> None:
    (found,) = recommend(load([str(store)]), max_bpw=7.5)
    assert found.best["metric.cider"] == pytest.approx(max(score(one) for one in grid() if bpw(one) <= 7.5))
    assert found.best["bpw_paper"] <= 7.5
    # Damage is the same for every item, so no cell with a lower score is as good; ties are.
    ties = [one for one in grid() if bpw(one) <= 7.5 and score(one) == score(best_of(found))]
    assert len(found.as_good) == len(ties) - 1
    assert found.as_good["metric.cider"].tolist() == pytest.approx([found.best["metric.cider"]] * (len(ties) - 1))


def best_of(found: Recommendation) -> dict[str, int]:
    return {part: int(found.best[f"bits.{part}"]) for part in PARTS}


def grid() -> list[dict[str, int]]:
    rows = [dict(zip(PARTS, widths, strict=True)) for widths in itertools.product(WIDTHS, repeat=3)]
    return [bits for bits in rows if not (bits["vision"] == 4 and bits["language"] == 4)]


def test_the_smallest_within_a_budget_of_quality(store: Path) -> None:
    (found,) = recommend(load([str(store)]), min_quality=0.8)
    assert found.best["bpw_paper"] == pytest.approx(min(bpw(one) for one in grid() if score(one) >= 0.8))


def test_unmeasured_assignments_come_with_the_models_error_and_a_command(store: Path) -> None:
    (found,) = recommend(load([str(store)]), max_bpw=7.0)
    for candidate in found.candidates:
        assert candidate["bits"]["vision"] == candidate["bits"]["language"] == 4
        assert candidate["bpw_paper"] == pytest.approx(bpw(candidate["bits"]))
        assert candidate["error"] > 0
        assert candidate["command"].startswith(
            "python -m mmq_sweeps model=m task=t method=gptq component.vision.bits=4 "
        )
    assert {"vision": 4, "connector": 4, "language": 4} in [candidate["bits"] for candidate in found.candidates]


def test_a_score_that_looks_like_the_best_is_not_expected_to_be_better(tmp_path: Path) -> None:
    stored(tmp_path, {"none": [({}, 16.0, 1.0)], "gptq": [(bits, bpw(bits), score(bits) * 1e-5) for bits in grid()]})
    (found,) = recommend(load([str(tmp_path)]), max_bpw=7.0)
    assert found.candidates == []


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"max_bpw": 1.0}, r"no cell has at most 1 bits per weight; the smallest has 5\.500"),
        ({"min_quality": 1.5}, "no cell keeps 150% of full precision"),
        ({}, "give one of --max-bpw and --min-quality"),
    ],
)
def test_a_budget_that_nothing_meets_is_an_error(store: Path, budget: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        recommend(load([str(store)]), **budget)
