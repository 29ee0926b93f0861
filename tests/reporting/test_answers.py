from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.audit.answers import alike_lines
from analysis.load import load
from mmq_sweeps.metrics import AnswerScorer
from mmq_sweeps.metrics.degenerate import alike
from mmq_sweeps.reporting.answers import alike_columns, called
from mmq_sweeps.reporting.table import rows
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record

NOTHING = {"empty": 1.0, "identical": 0.0, "expected": 0.2, "commonest": ""}
SAME = {"empty": 0.0, "identical": 1.0, "expected": 0.2, "commonest": "yes"}
SOUND = {"empty": 0.0, "identical": 0.2, "expected": 0.2, "commonest": "yes"}


@given(st.lists(st.sampled_from(["", " ", "a", "b", "c"]), min_size=1, max_size=20))
def test_shares_of_empty_and_of_identical_answers(outputs: list[str]) -> None:
    found = alike(outputs, ["a"] * len(outputs))
    assert found is not None
    blank = sum(not output.strip() for output in outputs)
    assert found.empty == pytest.approx(blank / len(outputs))
    assert found.expected == 1
    assert found.identical == max(outputs.count(letter) for letter in "abc") / len(outputs)
    assert found.empty == 1 or outputs.count(found.commonest) / len(outputs) == found.identical


def test_every_result_of_a_cell_says_how_alike_its_answers_are() -> None:
    scorer = AnswerScorer({"1": ["yes"], "2": ["no"], "3": ["two"], "4": ["red"]}, ["gqa_accuracy"])
    found = scorer.score({"1": "Yes.", "2": "yes", "3": "", "4": "yes"})["gqa_accuracy"].alike
    assert found is not None
    assert (found.empty, found.identical, found.expected, found.commonest) == (0.25, 0.75, 0.25, "yes")


def test_gptq_columns_are_there_only_if_they_say_something() -> None:
    assert not list(alike_columns([{"answers": SOUND}, {}]))
    assert list(alike_columns([{"answers": SOUND}, {"answers": SAME}, {}])) == [("same", ["20.0%", "all", ""])]
    assert list(alike_columns([{"answers": SOUND}, {"answers": NOTHING}])) == [("empty", ["", "all"])]


def test_a_cell_that_says_nothing_or_the_same_to_everything_is_called_that() -> None:
    assert called(NOTHING) == "says nothing"
    assert called(SAME) == "says 'yes' to everything"
    assert called(SOUND) == called({}) == called({**SAME, "expected": 1.0}) == ""


def test_what_records_say_of_answers_reaches_table_and_analysis(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.save(record("none", {}, 16.0, 1.0))  # of before it was told
    store.save(replace(record("rtn", {"vision": 4}, 8.0, 0.5), answers=SAME))
    store.save(replace(record("rtn", {"vision": 2}, 4.0, 0.5), answers={**SOUND, "empty": 0.1}))
    texts = {row["label"]: row.get("answers") for row in rows(store.records(), lambda _: [])}
    assert texts == {"none": None, "rtn": {**SOUND, "empty": 0.1}}
    told = load([str(tmp_path)]).frame
    assert list(alike_lines(told)) == [
        "rtn vision 2 leaves 10.0% of the items without an answer",
        "rtn vision 4 says 'yes' to everything",
    ]
