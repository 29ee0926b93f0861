from __future__ import annotations

from pathlib import Path

import pytest

from analysis.load import load
from analysis.measures.sensitivity import sensitivities
from tests.analysis.grids import stored

FULL = {"none": [({}, 16.0, 1.0)]}


def test_damage_alone_and_together(tmp_path: Path) -> None:
    cells = [({"vision": 3}, 10.0, 0.9), ({"language": 3}, 9.0, 0.8), ({"vision": 3, "language": 3}, 5.0, 0.5)]
    stored(tmp_path, {**FULL, "gptq": cells})
    (found,) = sensitivities(load([str(tmp_path)]))
    assert list(found.alone["part"]) == ["vision", "language"]
    assert list(found.alone["damage"]) == pytest.approx([0.1, 0.2])
    (pair,) = found.pairs.to_dict("records")
    assert (pair["together"], pair["sum"], pair["interaction"]) == pytest.approx((0.5, 0.3, 0.2))
    # Every item has the same damage here, so the interval is the figure.
    assert (pair["low"], pair["high"]) == pytest.approx((0.2, 0.2))


def test_methods_are_compared_where_both_were_measured(tmp_path: Path) -> None:
    stored(
        tmp_path,
        {
            **FULL,
            "gptq": [({"vision": 3}, 10.0, 0.9), ({"vision": 4}, 11.0, 0.95)],
            "rtn": [({"vision": 3}, 10.0, 0.7), ({"vision": 2}, 9.0, 0.1)],
        },
    )
    (found,) = sensitivities(load([str(tmp_path)]))
    (told,) = found.methods.to_dict("records")
    assert (told["method"], told["than"], told["cells"], told["better_in"]) == ("gptq", "rtn", 1, 1)
    assert told["better_by"] == pytest.approx(0.2)


def test_without_full_precision_there_is_no_damage(tmp_path: Path) -> None:
    stored(tmp_path, {"gptq": [({"vision": 3}, 10.0, 0.9)]})
    with pytest.raises(ValueError, match="m, t: has no full-precision cell; run method=none"):
        sensitivities(load([str(tmp_path)]))


def test_the_published_gptq_cells_are_told_without_intervals(published: Path) -> None:
    found = next(one for one in sensitivities(load([f"published:{published}"]), "cider") if "gptq" in one.title)
    assert "low" not in found.alone
    assert found.notes
    by_cell = found.alone.set_index(["part", "bits"])["damage"]
    assert by_cell["vision", 2] > 1.0
    assert abs(by_cell["language", 8]) < 0.1
