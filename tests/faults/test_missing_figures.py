"""Cells without a figure hide no other cell, and a figure that rests on too little says so."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.audit.checks import audit
from analysis.figures.catalog import figures
from analysis.figures.plots import Heatmap
from analysis.load import load
from analysis.measures.family import families
from analysis.measures.frontier import frontiers
from analysis.measures.importance import importances
from analysis.measures.recommend import recommend
from analysis.measures.sensitivity import sensitivities
from analysis.output import json_text
from analysis.report import content, page, words
from mmq_sweeps.store.record import Record
from tests.faults.cells import made, stored
from tests.faults.results import FULL, WHOLE4, run

# Cells without a figure are left out, with a word.


def valueless(method: str, parts: dict[str, int], bpw: float | None) -> Record:
    """Make a finished cell whose metric has no value, as records of older versions may have it."""
    one = made(method, parts, 8.0, {"cider": 0.0})
    metrics = {"cider": {**one.metrics["cider"], "value": None, "interval": [None, None]}}
    size = {**one.size, "total": {**one.size["total"], "bpw_paper": bpw, "bpw_exact": bpw}}
    return replace(one, metrics=metrics, size=size)


def without_exact(record: Record) -> Record:
    return replace(record, size={**record.size, "total": {**record.size["total"], "bpw_exact": None}})


def test_a_method_without_a_figure_has_no_frontier_and_that_is_said(tmp_path: Path) -> None:
    records = [FULL, made("gptq", WHOLE4, 4.0, {"cider": 5.0}), valueless("awq", WHOLE4, 4.0)]
    cells = load([stored(tmp_path, *records)])
    (one,) = frontiers(cells, by_method=True)
    assert (one.method, len(one.cells)) == ("gptq", 2)
    assert "no frontier of awq: no cell of it has both cider and bpw_paper" in one.notes
    (overall,) = frontiers(cells)
    assert "1 of 3 cells lacks cider or bpw_paper: left out" in overall.notes


def test_a_method_without_exact_bits_has_no_frontier_of_them(tmp_path: Path) -> None:
    records = [without_exact(FULL), without_exact(made("awq", WHOLE4, 4.0, {"cider": 5.5}))]
    cells = load([stored(tmp_path, *records, made("gptq", WHOLE4, 4.0, {"cider": 5.0}, exact=4.25))])
    (one,) = frontiers(cells, bpw="bpw_exact", by_method=True)
    assert (one.method, one.full, one.rows["bpw_exact"].tolist()) == ("gptq", 5.88, [4.25])
    assert "no frontier of awq: no cell of it has both cider and bpw_exact" in one.notes


@pytest.mark.parametrize("by_method", [False, True])
def test_cells_none_of_which_has_both_figure_and_bits_are_an_error(tmp_path: Path, by_method: bool) -> None:
    unsized = made("gptq", WHOLE4, 4.0, {"cider": 5.0})
    unsized = replace(unsized, size={**unsized.size, "total": {"bpw_paper": None, "bpw_exact": None}})
    cells = load([stored(tmp_path, valueless("none", {}, 16.0), unsized)])
    with pytest.raises(ValueError, match="cell has a metric and bpw_paper; the cells have cider"):
        frontiers(cells, by_method=by_method)


def test_a_full_precision_cell_without_a_figure_is_no_baseline(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, valueless("none", {}, 16.0), made("gptq", WHOLE4, 4.0, {"cider": 5.0}))])
    with pytest.raises(ValueError, match="full precision has no cider; measure it again with method=none"):
        sensitivities(cells)


# A draw in which all cells score the same ranks nothing.


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_an_importance_that_rests_on_one_cell_has_intervals_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        made("gptq", {"vision": vision, "language": language}, 8.0, {"cider": float((vision, language) != (2, 2))})
        for vision, language in itertools.product((2, 3, 4, 5, 6), repeat=2)
    ]
    folder = stored(tmp_path, *records)
    # A draw of 25 of 25 cells misses the only differing cell with a probability of 36%.
    (found,) = importances(load([folder]), resamples=8)
    assert found.count == 25
    assert found.table.notna().all(axis=None)
    assert (found.table["low"] <= found.table["high"]).all()
    place = list(load([folder]).frame["id"]).index(records[0].id)
    draws = np.random.default_rng(0).integers(0, 25, (8, 25))
    lacking = int((draws != place).all(axis=1).sum())
    assert lacking > 0
    (told,) = [warning for warning in found.warnings if "not told apart" in warning]
    assert f"in {lacking} of 8 resamples of the cells all score the same" in told
    monkeypatch.setattr("analysis.measures.importance.importances", lambda *_, **__: [found])
    run(monkeypatch, "importance", "--source", folder, "--json")
    (printed,) = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert set(printed["importance"]["vision"]) == {"forest", "permutation", "shap", "mean", "low", "high", "per_bit"}


def test_scores_that_differ_by_rounding_have_no_importance(tmp_path: Path) -> None:
    records = [
        made("gptq", {"vision": vision, "language": language}, 8.0, {"cider": 0.3 + 1e-15 * vision * language})
        for vision, language in itertools.product((2, 3, 4, 5, 6), repeat=2)
    ]
    with pytest.raises(ValueError, match="every cell has the same score"):
        importances(load([stored(tmp_path, *records)]), resamples=2)


def test_cells_without_a_figure_are_left_out_of_importance_with_a_word(tmp_path: Path) -> None:
    records = [
        made("gptq", {"vision": vision, "language": language}, 8.0, {"cider": float(vision)})
        for vision, language in itertools.product((2, 3, 4, 5, 6), repeat=2)
    ]
    folder = stored(tmp_path, *records, valueless("gptq", {"vision": 7, "language": 7}, 8.0))
    (found,) = importances(load([folder]), resamples=2)
    assert found.count == 25
    assert "1 of 26 cells has no CIDEr and is left out" in found.warnings


def test_what_json_does_not_know_is_null() -> None:
    told = {"a": [float("nan"), (1.5, np.float64("inf"))], "b": np.int64(3), "c": float("-inf"), "d": np.bool_(True)}
    printed = json.loads(json_text(told), parse_constant=no_constant)
    assert printed == {"a": [None, [1.5, None]], "b": 3, "c": None, "d": True}


@pytest.mark.parametrize(
    "verb", [["frontier"], ["frontier", "--by-method"], ["sensitivity"], ["recommend", "--max-bpw", "9"]]
)
def test_the_json_of_every_verb_is_json_whatever_the_figures(
    tmp_path: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = load(
        [stored(tmp_path, FULL, made("gptq", WHOLE4, 4.0, {"cider": 5.0}), made("rtn", WHOLE4, 4.0, {"cider": 1.0}))]
    )
    # As a W&B run or a published table may have it; records refuse it.
    cells.frame.loc[cells.frame["method"] == "gptq", ["metric.cider", "seconds"]] = np.inf
    monkeypatch.setattr("analysis.verbs.load", lambda _sources: cells)
    run(monkeypatch, *verb, "--source", tmp_path, "--json")
    assert json.loads(capsys.readouterr().out, parse_constant=no_constant)


# Two methods are not averaged, and a cell that lacks a figure hides no other.


def test_damages_of_pairs_are_told_by_method(tmp_path: Path) -> None:
    records = [FULL]
    for method, factor in (("awq", 1), ("gptq", 3)):
        for parts, damage in ((("vision",), 0.1), (("language",), 0.2), (("vision", "language"), 0.5)):
            records.append(made(method, dict.fromkeys(parts, 4), 8.0, {"cider": 5.88 - factor * damage}))
    (family,) = families(load([stored(tmp_path, *records)]))
    assert family.sensitivity is not None
    told = [line for line in words.of_sensitivity(family.sensitivity) if "together" in line]
    assert told == [
        f"{method} in two parts together costs {together} on average, against {alone} for the sum of each alone; "
        "worse together in 1 of 1 pair."
        for method, together, alone in (("awq", "0.5000", "0.3000"), ("gptq", "1.5000", "0.9000"))
    ]


def test_methods_that_score_alike_are_not_told_apart_in_words(tmp_path: Path) -> None:
    records = [FULL, *(made(method, WHOLE4, 4.0, {"cider": 5.0}) for method in ("awq", "gptq"))]
    (family,) = families(load([stored(tmp_path, *records)]))
    assert family.sensitivity is not None
    (told,) = words.of_sensitivity(family.sensitivity)
    assert told == "awq scores the same as gptq on average at the same bits, better in 0 of 1 assignment."


def test_a_cell_without_a_figure_empties_no_field_of_a_figure_and_is_a_defect(tmp_path: Path) -> None:
    records = [
        made("gptq", dict.fromkeys(parts, 4), 8.0, {"cider": 5.0 - len(parts)})
        for parts in (("vision",), ("connector",), ("language",), ("vision", "language"))
    ]
    cells = load([stored(tmp_path, FULL, *records, made("rtn", {"vision": 4}, 8.0, {"cider": 4.5}))])
    # The same assignment once more, without a figure.
    again = cells.frame[cells.frame["id"] == records[0].id].assign(id="again", **{"metric.cider": np.nan})
    cells = cells.of(pd.concat([cells.frame, again]))
    (plot,) = figures(cells, names=["pairs"])
    (panel,) = plot.panels
    assert isinstance(panel, Heatmap)
    assert panel.values[0][0] == 4.0
    (told,) = [one for one in audit(cells) if one.defect == "no figure"]
    assert told.sentence == "1 cell has no CIDEr and is left out of all other checks: gptq vision 4"
    assert (told.cells, told.of) == (1, 7)


def test_copies_of_which_one_has_no_figure_are_told(tmp_path: Path) -> None:
    one = made("gptq", WHOLE4, 4.0, {"cider": 5.0})
    empty = replace(one, metrics={"cider": {**one.metrics["cider"], "value": None, "interval": [None, None]}})
    cells = load([stored(tmp_path / "a", FULL, one), stored(tmp_path / "b", FULL, empty)])
    assert [note for note in cells.notes if f"cell {one.id} was measured 2 times with different results" in note]
    (told,) = [finding.sentence for finding in audit(cells) if finding.defect == "measured twice"]
    assert "has 2 records: CIDEr has a value in some and none in others" in told


def test_cells_without_bits_per_weight_are_no_recommendation_and_a_family_of_them_no_report(tmp_path: Path) -> None:
    def unsized(record: Record) -> Record:
        return replace(record, size={"total": {"bpw_paper": None, "bpw_exact": None}, "parts": {}})

    other = [unsized(made("gptq", parts, 4.0, {"cider": 5.0}, names=("m", "u"))) for parts in ({}, WHOLE4)]
    best = made("gptq", WHOLE4, 4.0, {"cider": 5.0})
    cells = load([stored(tmp_path, unsized(FULL), unsized(made("rtn", WHOLE4, 4.0, {"cider": 5.8})), best, *other)])
    (told,) = recommend(cells, min_quality=0.5)
    assert (told.title, told.best["id"], told.full) == ("m, t", best.id, 5.88)
    text = page.render(content.page(cells, None, "c"))
    assert "m, u: no cell has both CIDEr and bits per weight, so it is left out." in text
    only = cells.of(cells.frame[cells.frame["task"] == "u"])
    with pytest.raises(ValueError, match="m, u: no cell has bits per weight"):
        recommend(only, max_bpw=8)
    with pytest.raises(ValueError, match="no finished cell has both a metric and bits per weight: nothing to report"):
        content.page(only, None, "c")


def test_damage_is_measured_from_the_full_precision_that_the_frontier_tells(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, FULL, made("gptq", {"vision": 4}, 8.0, {"cider": 5.0}))])
    # As in a published table, which has full precision several times.
    several = [
        cells.frame[cells.frame["method"] == "none"].assign(id=f"full {score}", **{"metric.cider": score})
        for score in (5.5, 5.9, 6.0)
    ]
    cells = cells.of(pd.concat([*several, cells.frame[cells.frame["method"] != "none"]]))
    (damage,), (one,) = sensitivities(cells), frontiers(cells)
    assert damage.full == one.full == 5.9
    assert damage.alone["damage"].tolist() == pytest.approx([0.9])
