"""Searches of a store, as tables and figures."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.figures.plots import XY, Heatmap
from analysis.figures.searches import plots
from analysis.load import load
from analysis.load.searches import searches
from analysis.report import content as report
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, saved, stored

ANSWER = {
    "budget": "max_bpw=3.5",
    "cell": "aaaaaaaaaaaa",
    "label": "vision 2 to 3, language 4",
    "widths": {
        "vision": [["vision.0.attention", 2, "2"], ["vision.0.mlp", 3, "3"], ["vision.1.mlp", 2, "2"]],
        "language": [["language.0.mlp", 4, "4"]],
        "head": [["head", 8, "8"]],
    },
    "bpw": 3.4,
    "value": 0.8,
    "interval": [0.7, 0.9],
    "from_uniform": None,
    "from_full": {"value": -0.2, "interval": [-0.3, -0.1], "significant": True},
    "optimistic": True,
    "export": "python -m mmq_sweeps.export aaaaaaaaaaaa --source runs --out DIR",
}
SEARCH: dict[str, Any] = {
    "search": "0123456789ab",
    "state": "done",
    "command": "python -m mmq_sweeps -m hydra/sweeper=budget",
    "updated": "2026-01-01T00:00:00.000+00:00",
    "model": "tiny",
    "task": "captions",
    "metric": "cider",
    "settings": {"granularity": "unit"},
    "answers": [ANSWER],
    "predicted_frontier": [{"bpw": 3.0, "share": 0.5}, {"bpw": 16.0, "share": 1.0}],
    "cost": {"cells": 40, "items": 4000, "grid": {"cells": 10**20}},
    "measured": [
        {"stage": "final", "cell": "ffffffffffff", "point": None, "bpw": 16.0, "value": 1.0},
        {"stage": "final", "cell": "aaaaaaaaaaaa", "point": [0], "bpw": 3.4, "value": 0.8},
        {"stage": "final", "cell": "bbbbbbbbbbbb", "point": [1], "bpw": 3.0, "value": 0.6},
        {"stage": "race", "cell": "cccccccccccc", "point": [1], "bpw": 3.0, "value": 0.1},
    ],
}


def written(root: Path, **changes: Any) -> str:
    content = {**copy.deepcopy(SEARCH), **changes}
    path = root / "sweeps" / content["search"] / "search.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(root)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
    main()
    return capsys.readouterr().out


def test_the_latest_search_comes_first(tmp_path: Path) -> None:
    written(tmp_path)
    source = written(tmp_path, search="ba9876543210", updated="2026-02-01T00:00:00.000+00:00")
    assert [one.id for one in searches([source, "published:elsewhere"])] == ["ba9876543210", "0123456789ab"]


def test_bits_are_shown_by_unit(tmp_path: Path) -> None:
    (search,) = searches([written(tmp_path)])
    bits, _ = plots(search)
    (panel,) = bits.panels
    assert isinstance(panel, Heatmap)
    assert panel.title == "at most 3.5 bits per weight"
    assert panel.rows == ["vision attention", "vision mlp", "language mlp", "head"]
    assert panel.columns == ["0", "1"]
    assert [[None if math.isnan(value) else value for value in row] for row in panel.values] == [
        [2, None], [3, 2], [4, None], [8, None],
    ]  # fmt: skip


def test_the_predicted_frontier_is_shown_beside_what_was_measured(tmp_path: Path) -> None:
    (search,) = searches([written(tmp_path)])
    _, frontier = plots(search)
    (panel,) = frontier.panels
    assert isinstance(panel, XY)
    assert panel.level == 1.0
    assert {one.label: (list(one.x), list(one.y)) for one in panel.series} == {
        "predicted": ([3.0, 16.0], [0.5, 1.0]), "found": ([3.4], [0.8]), "best uniform": ([3.0], [0.6]),
    }  # fmt: skip


def test_the_verb_prints_answers_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path)
    shown = run(capsys, monkeypatch, "search", "--source", source, "--out", str(tmp_path / "pictures"))
    assert "tiny, captions, by unit (search 0123456789ab)" in shown
    assert "0.8000!" in shown
    assert "-0.2000*" in shown
    assert "40 cells and 4,000 items instead of 10^20 cells" in shown
    assert f"python -m mmq_sweeps.export aaaaaaaaaaaa --source {source} --out DIR" in " ".join(shown.split())
    assert "! max_bpw=3.5: chosen on the split that it is measured on" in shown
    assert sorted(path.suffix for path in (tmp_path / "pictures").iterdir()).count(".png") == 4
    (told,) = json.loads(run(capsys, monkeypatch, "search", "--source", source, "--json"))
    assert told["answers"] == [ANSWER]


def test_half_a_search_is_told_with_the_command_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path, state="halted", reason="interrupted")
    (search,) = searches([source])
    assert plots(search) == []
    shown = run(capsys, monkeypatch, "search", "--source", source)
    assert (
        "run its command again to go on: python -m mmq_sweeps -m hydra/sweeper=budget (it stopped: interrupted)"
        in shown
    )


def test_a_store_without_a_search_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", "search", "--source", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    source = written(tmp_path)
    next(tmp_path.glob("sweeps/*/search.json")).write_text("{")
    with pytest.raises(StoreError, match=r"cannot read .*search\.json"):
        searches([source])


def test_races_are_left_out_of_other_analyses(tmp_path: Path) -> None:
    stored(tmp_path / "runs", {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 8.0, 0.9)]})
    raced = record("gptq", {"vision": 3}, 8.0, 0.7)
    cell = {**raced.cell, "task": {"sample": {"seed": 0, "start": 0, "stop": 8}}}
    saved(Store.open(tmp_path / "runs"), replace(raced, id="raced", cell=cell), [0.7] * 8)
    cells = load([str(tmp_path / "runs")])
    assert "raced" not in set(cells.frame["id"])
    assert len(cells.frame) == 2
    assert cells.notes == ("1 cell on some items alone, as in races of a search, left out",)


def test_the_report_has_a_section_on_searches(tmp_path: Path) -> None:
    stored(tmp_path / "runs", {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 8.0, 0.9)]})
    found = searches([written(tmp_path / "runs")])
    cells = load([str(tmp_path / "runs")])
    titles = [section.title for section in report.page(cells, None, "", found_by=found).sections]
    assert "Searches" in titles
    assert "Searches" not in [section.title for section in report.page(cells, None, "").sections]
