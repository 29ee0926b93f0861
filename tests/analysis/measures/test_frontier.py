from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from analysis.load import load
from analysis.measures.frontier import discoveries, frontiers, non_dominated, resampled_means
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, stored

FULL = {"none": [({}, 16.0, 1.0)]}


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(0, 5)))
def test_no_cell_of_the_frontier_is_beaten_and_every_other_is(points: np.ndarray) -> None:
    bits, quality = points[:, 0].astype(float), points[:, 1].astype(float)
    beaten = [
        any(
            b <= bits[i] and q >= quality[i] and (b < bits[i] or q > quality[i])
            for b, q in zip(bits, quality, strict=True)
        )
        for i in range(len(bits))
    ]
    assert (non_dominated(bits, quality) == ~np.array(beaten)).all()


def test_frontier_of_a_store(tmp_path: Path) -> None:
    stored(
        tmp_path, {**FULL, "gptq": [({"vision": 4}, 8.0, 0.99), ({"vision": 3}, 7.0, 0.5), ({"vision": 2}, 7.5, 0.4)]}
    )
    (found,) = frontiers(load([str(tmp_path)]))
    assert list(found.rows["assignment"]) == ["gptq vision 3", "gptq vision 4", "full precision"]
    assert found.full == pytest.approx(1.0)
    smallest = found.smallest_within(0.98)
    assert smallest is not None
    assert smallest["bpw_paper"] == 8.0
    assert found.smallest_within(1.01) is None
    # 7 to 8 bits at 0.5, 8 to 16 at 0.99.
    assert found.hypervolume() == pytest.approx(0.5 + 8 * 0.99)


def test_cells_that_tie_are_all_on_the_frontier(tmp_path: Path) -> None:
    stored(tmp_path, {**FULL, "gptq": [({"vision": 4}, 8.0, 0.9)], "awq": [({"vision": 4}, 8.0, 0.9)]})
    (found,) = frontiers(load([str(tmp_path)]))
    assert len(found.rows) == 3
    assert found.hypervolume() == pytest.approx(8 * 0.9)


def test_each_method_has_a_frontier_of_its_own(tmp_path: Path) -> None:
    stored(tmp_path, {**FULL, "gptq": [({"vision": 4}, 8.0, 0.9)], "awq": [({"vision": 4}, 8.0, 0.8)]})
    found = frontiers(load([str(tmp_path)]), by_method=True)
    assert [one.title for one in found] == ["m, t, awq", "m, t, gptq"]
    assert [len(one.rows) for one in found] == [2, 2]


def test_probabilities_come_from_the_same_items_in_every_cell(tmp_path: Path) -> None:
    # All cells share the noise of their items, so a cell that is better by a little is better in every draw.
    stored(tmp_path, {**FULL, "gptq": [({"vision": 4}, 8.0, 0.999), ({"vision": 3}, 8.5, 0.998)]})
    (found,) = frontiers(load([str(tmp_path)]))
    by_cell = found.cells.set_index("id")
    assert by_cell.loc["gptq-vision4", "probability"] == 1.0
    assert by_cell.loc["gptq-vision3", "probability"] == 0.0
    assert by_cell.loc["gptq-vision4", "significant"]
    assert by_cell.loc["gptq-vision4", "difference"] == pytest.approx(-0.001)
    assert not by_cell.loc["none", "significant"]


def test_resampled_means_are_centred_and_the_same_draw_for_all() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (1, 200))
    draws = resampled_means(np.concatenate([scores, scores + 1]))
    assert np.allclose(draws[:, 1] - draws[:, 0], 1)
    assert draws[:, 0].mean() == pytest.approx(scores.mean(), abs=0.02)
    assert draws[:, 0].std() == pytest.approx(scores.std() / np.sqrt(200), rel=0.1)


def test_items_of_a_group_are_drawn_together() -> None:
    single = np.random.default_rng(0).normal(0, 1, (2, 50))
    copies, owners = np.repeat(single, 4, axis=1), np.repeat(np.arange(50), 4)
    assert np.allclose(resampled_means(copies, owners), resampled_means(single))
    assert resampled_means(copies)[:, 0].std() == pytest.approx(resampled_means(single)[:, 0].std() / 2, rel=0.1)


def test_questions_about_one_picture_are_one_piece_of_evidence(tmp_path: Path) -> None:
    """Clustered by picture, four questions each, the interval is twice as wide as with questions counted apart."""
    scores = np.repeat(np.random.default_rng(1).normal(0.5, 0.2, 20), 4)
    widths = []
    for name, group in (("apart", "{item}"), ("together", "picture {picture}")):
        store = Store.open(tmp_path / name)
        for method, bits, shift in (("none", {}, 0.0), ("gptq", {"vision": 4}, -0.1)):
            one = record(method, bits, 8.0 if bits else 16.0, float(scores.mean() + shift))
            items = [
                {
                    "id": str(item),
                    "group": group.format(item=item, picture=item // 4),
                    "prediction": "",
                    "scores": {"cider": score},
                }
                for item, score in enumerate((scores + shift).tolist())
            ]
            store.save(one, items)
        (found,) = frontiers(load([str(tmp_path / name)]))
        row = found.cells.set_index("id").loc["gptq-vision4"]
        widths.append(row["high"] - row["low"])
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    # The worked example of their paper (1995), section 3.2: at a rate of 0.05 four hypotheses are rejected.
    p_values = np.array(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.3240,
            0.4262,
            0.5719,
            0.6528,
            0.7590,
            1.0,
        ]
    )
    assert discoveries(p_values).sum() == 4
    assert discoveries(p_values[::-1])[-4:].all()
    assert not discoveries(np.ones(3)).any()


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        ({"gptq": [({"vision": 4}, 8.0, 0.9), ({"vision": 3}, 7.0, 0.8)]}, "no full-precision cell"),
        (FULL, "one cell only"),
        ({**FULL, "gptq": [({"vision": 4}, 8.0, 1.0)]}, "every cell has the same CIDEr"),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path: Path, cells: dict, note: str) -> None:
    stored(tmp_path, cells)
    (found,) = frontiers(load([str(tmp_path)]))
    assert any(note in told for told in found.notes)


def test_a_metric_that_no_cell_has_is_an_error(tmp_path: Path) -> None:
    stored(tmp_path, FULL)
    with pytest.raises(ValueError, match="no finished cell has a metric 'spice' and bpw_paper; the cells have cider"):
        frontiers(load([str(tmp_path)]), "spice")


def test_the_published_gptq_cells(published: Path) -> None:
    found = {one.title: one for one in frontiers(load([f"published:{published}"]), "cider")}
    gptq = next(one for title, one in found.items() if "gptq" in title)
    assert gptq.full == 1.204082654861252
    assert len(gptq.cells) == 448
    assert "no per-item scores of all cells: no probabilities" in gptq.notes
