"""Two cells beside each other: by hand on made-up answers, and as the command shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.measures.compare import compare
from analysis.tables.records import Stored, find, read
from mmq_sweeps.reporting.compare import all_differences
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.faults.cells import made
from tests.faults.results import run

SCENES = {"_target_": "caption", "data": {"_target_": "scenes", "seed": 0}, "split": "evaluation", "limit": 4}
IDS = [f"evaluation-0-{number:06}" for number in range(4)]
FULL = ("a", "b", "c", "d")


def saved(
    folder: Path,
    method: str,
    bits: int | None,
    answers: Sequence[str],
    task: dict[str, Any] = SCENES,
    **scores: Sequence[float],
) -> Record:
    """Save a finished cell with these answers and its metrics' scores of each item."""
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    record = made(method, {"vision": bits} if bits else {}, bits or 16.0, means, task=task, lower=["wer"])
    items = [
        {"id": item, "prediction": text, "scores": {name: values[place] for name, values in scores.items()}}
        for place, (item, text) in enumerate(zip(IDS, answers, strict=True))
    ]
    return Store.open(folder).save(record, items)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    saved(tmp_path, "none", None, FULL, acc_accuracy=(1, 1, 0, 0), wer=(0.1, 0.2, 0.3, 0.4))
    saved(tmp_path, "rtn", 3, ("a", "x", "y", "e"), acc_accuracy=(1, 0, 1, 0), wer=(0.1, 0.3, 0.1, 0.4))
    return tmp_path


def pair(folder: Path) -> tuple[dict[str, Stored], Stored, Stored]:
    stored = read([folder], "compare")
    return stored, find(stored, "none"), find(stored, "rtn")


def test_differences_are_those_of_the_table_and_items_are_counted_by_the_better_direction(store: Path) -> None:
    stored, first, second = pair(store)
    found = compare(stored, first, second, None, 20)
    told = all_differences(first.record, first.items(), [second.record], lambda _: second.items())[second.record.id]
    by_name = {one.metric: one for one in found.differences}
    for name, one in by_name.items():
        assert (one.value, list(one.interval or ())) == (told[name]["difference"], told[name]["difference_interval"])
    assert [getattr(by_name["wer"], name) for name in ("better", "worse", "alike")] == [1, 1, 2]
    assert by_name["acc_accuracy"].flips == (1, 1)
    # Errors by word do not say whether an answer is right.
    assert by_name["wer"].flips is None
    assert (found.shared, found.changed) == (4, 3)


def test_flips_change_sides_with_the_cells(store: Path) -> None:
    saved(store, "rtn", 2, FULL, acc_accuracy=(0, 0, 0, 1), wer=(0.1,) * 4)
    stored = read([store], "compare")
    full = next(one for one in stored.values() if one.record.baseline)
    low = next(one for one in stored.values() if one.record.size["total"]["bpw_paper"] == 2)
    there, back = compare(stored, full, low, None, 20), compare(stored, low, full, None, 20)
    assert there.differences[0].flips == (2, 1)
    assert back.differences[0].flips == (1, 2)
    assert there.differences[0].value == -back.differences[0].value  # type: ignore[operator]


def test_ones_of_a_metric_of_errors_are_no_right_answers(tmp_path: Path) -> None:
    saved(tmp_path, "none", None, FULL, wer=(1, 1, 0, 0))
    saved(tmp_path, "rtn", 3, ("a", "x", "y", "e"), wer=(1, 0, 0, 0))
    (found,) = compare(*pair(tmp_path), None, 20).differences
    assert (found.better, found.worse, found.flips) == (1, 0, None)


def test_the_items_that_changed_most_are_ranked_by_the_metric(store: Path) -> None:
    stored, first, second = pair(store)
    assert [one.id for one in compare(stored, first, second, "wer", 20).most] == [IDS[2], IDS[1], IDS[3]]
    assert [one.id for one in compare(stored, first, second, "wer", 1).most] == [IDS[2]]
    with pytest.raises(ValueError, match=r"--metric: Unknown metric 'cider'.* Choose acc_accuracy or wer"):
        compare(stored, first, second, "cider", 20)


def refused(folder: Path, first: str, second: str) -> str:
    stored = read([folder], "compare")
    with pytest.raises(ValueError, match="cell") as caught:
        compare(stored, find(stored, first), find(stored, second), None, 20)
    return str(caught.value)


def test_cells_that_are_not_comparable_are_refused_with_what_differs(store: Path) -> None:
    other = saved(store, "gptq", 3, FULL, {**SCENES, "limit": 8, "prompt": "say"}, acc_accuracy=(1,) * 4)
    told = refused(store, "rtn", other.id)
    assert told.endswith("they differ in task.limit (4 against 8); task.prompt (None against say)")
    llava = replace(
        other, id="llava", names={**other.names, "model": "llava"}, cell={**other.cell, "model": {"checkpoint": "l"}}
    )
    Store.open(store).save(llava, [])
    assert refused(store, "rtn", "llava").endswith("they differ in model (m against llava)")
    failed = replace(other, id="failed", status="failed", error={"class": "OutOfMemory"}, metrics={}, items_sha256=None)
    Store.open(store).save(failed)
    assert refused(store, "rtn", "failed") == "cell failed: failed with OutOfMemory, so there is nothing to compare"
    assert "both are this cell" in refused(store, "rtn", "rtn")


def test_a_beginning_of_an_id_must_fit_one_cell(store: Path) -> None:
    saved(store, "rtn", 2, FULL, acc_accuracy=(1,) * 4)
    with pytest.raises(ValueError, match=r"cell rtn: fits 2 cells. Choose rtn-\w+ \(rtn vision \d\), rtn-"):
        find(read([store], "compare"), "rtn")
    with pytest.raises(ValueError, match=r"cell 'nome': unknown; nearest: none-\w+ \(full precision\); "):
        find(read([store], "compare"), "nome")


def test_the_command_shows_answers_with_references_and_writes_a_page_with_images(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pair.html"
    run(monkeypatch, "compare", "none", "rtn", "--source", store, "--metric", "wer", "--html", page)
    lines = capsys.readouterr().out.splitlines()
    assert "acc accuracy: 1 item right with A and wrong with B, 1 the other way round" in lines
    assert "3 of 4 answers changed" in lines
    place = lines.index(f"{IDS[2]}  0.3000 to 0.1000 (-0.2000)")
    assert lines[place + 1].startswith("  right  ")
    assert "  A      c" in lines[place + 2 : place + 4]
    assert "  B      y" in lines[place + 3 : place + 5]
    assert max(map(len, lines)) < 130
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "full precision" in text
    run(monkeypatch, "compare", "none", "rtn", "--source", store, "--json")
    told = json.loads(capsys.readouterr().out)
    assert [one["title"] for one in told["cells"]] == ["full precision", "rtn vision 3"]
    assert told["differences"]["acc_accuracy"]["right_to_wrong"] == 1
    assert told["changed_most"][0]["id"] == IDS[1]
    assert len(told["changed_most"][0]["references"]) == 5
