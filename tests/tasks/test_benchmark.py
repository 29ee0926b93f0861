"""Questions in a benchmark's form: instruction, options, context, right answers in each notation, groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmq_sweeps.config.sample import sample_problems
from mmq_sweeps.execution.run_cell import _items
from mmq_sweeps.tasks.base import Predictions
from mmq_sweeps.tasks.benchmark import BenchmarkTask


@dataclass(frozen=True)
class Asked:
    question: Any
    answers: tuple[Any, ...]
    kind: str = "count"
    options: tuple[Any, ...] = ()
    context: str = ""


@dataclass(frozen=True)
class Shown:
    id: str
    group: str
    questions: tuple[Asked, ...]

    @cached_property
    def image(self) -> Image.Image:
        return Image.new("RGB", (32, 32), (int(self.id) % 256, 99, 3))


ANIMALS = ("a dog", "a cat", "{choices}")
ROWS = (
    Asked("what is it?", ("1",), options=ANIMALS, context="Look closely."),
    Asked("what is {question}?", ("0",), options=ANIMALS),
    Asked("How many?", ("['2', 'two']",)),
)


@dataclass(frozen=True)
class Rows:
    """A reader of the given questions, each about a picture of its own; two share a group."""

    split: str
    count: int | None = None
    seed: int | None = None
    rows: tuple[Asked, ...] = field(default=ROWS)

    def __iter__(self) -> Iterator[Shown]:
        first = 100 if self.split == "train" else 0
        shown = [Shown(str(first + place), f"g{place // 2}", (asked,)) for place, asked in enumerate(self.rows)]
        return iter(shown[: self.count])


def task(**more: Any) -> BenchmarkTask:
    given: dict[str, Any] = {
        "name": "animals", "version": 1, "data": {"_target_": f"{__name__}.Rows"}, "split": "test",
        "calibration_split": "train", "limit": None, "prompt": "USER: <image>\n{question} ASSISTANT:",
        "generation": {"max_new_tokens": 4}, "metrics": ["mmmu_accuracy"], "batch_size": 2,
        "instruction": "{context}{question}\n{choices}\nThe letter.", "open_instruction": "{question}\nA word.",
        "answers_as": "index", "lists_as_text": True,
    }  # fmt: skip
    return BenchmarkTask(**(given | more))


def with_rows(*rows: Asked, **more: Any) -> BenchmarkTask:
    return task(data={"_target_": f"{__name__}.Rows", "rows": rows}, **more)


def test_what_is_asked_and_what_is_right() -> None:
    choice, braces, count = task().items
    options = "A. a dog\nB. a cat\nC. {choices}"
    assert choice.prompt == f"USER: <image>\nLook closely.\nwhat is it?\n{options}\nThe letter. ASSISTANT:"
    assert braces.question == f"what is {{question}}?\n{options}\nThe letter."
    assert count.question == "How many?\nA word."
    assert [item.references for item in (choice, braces, count)] == [("B",), ("A",), ("2", "two")]


def test_an_option_a_context_and_a_capital_are_written_as_told() -> None:
    (item,) = with_rows(ROWS[0], choice="({letter}) {text};", context="Hint: {context} ", capitalized=True).items
    assert item.question == "Hint: Look closely. What is it?\n(A) a dog;\n(B) a cat;\n(C) {choices};\nThe letter."


def test_questions_of_a_group_are_scored_and_recorded_as_one(tmp_path: Path) -> None:
    one = task()
    one.check([{"samples": 3, "seed": 0, "batch_size": 1}], tmp_path)
    said = {item.id: text for item, text in zip(one.items, ("B", "who knows", "It is 2."), strict=True)}
    result = one.score(said, tmp_path)["mmmu_accuracy"]
    assert list(result.per_item.values()) == [1.0, 0.0, 1.0]
    assert result.groups == {"0/0": "g0", "1/0": "g0", "2/0": "g1"}
    assert "1 of 3 answers name no option" in result.warnings
    assert [item.get("group") for item in _items(Predictions(said), {"mmmu_accuracy": result})] == ["g0", "g0", "g1"]


@pytest.mark.parametrize(
    ("row", "notation", "message"),
    [
        (
            replace(ROWS[0], answers=("3",)),
            "index",
            r'answer is "3", which is none of its 3 options by index, 0 to 2',
        ),
        (replace(ROWS[0], answers=("-1",)), "index", "by index"),
        (replace(ROWS[0], answers=("B",)), "index", "by index"),
        (replace(ROWS[0], answers=("1",)), "letter", "none of its 3 options by letter, A to C"),
        (replace(ROWS[0], answers=("D",)), "letter", "by letter"),
        (replace(ROWS[0], answers=("a bird",)), "text", "none of its 3 options by text; task.answers_as says how"),
        (Asked("what?", ("one",), options=("one", "one ", "two")), "text", "which is the text of options A and B"),
        (Asked("what?", ("0",), options=(None, "one")), "index", "one of its options is null, not text"),
        (
            Asked("what?", ("0",), options=tuple(map(str, range(27)))),
            "index",
            "it has 27 options, and there are 26 letters",
        ),
        (Asked("what?", ("['2', ",)), "index", "which is no list as Python writes it"),
        (Asked(None, ("2",)), "index", "the question is null, not text"),
        (Asked("  ", ("2",)), "index", "the question is empty"),
    ],
)
def test_a_question_that_cannot_be_used_is_named_before_work(
    tmp_path: Path, row: Asked, notation: str, message: str
) -> None:
    one = with_rows(ROWS[2], row, answers_as=notation)
    with pytest.raises(ValueError, match=rf"1 of 2 items cannot be used: 1/0: .*{message}"):
        one.check([], tmp_path)
    left = replace(one, allow_missing=True)
    left.check([], tmp_path)
    assert [item.id for item in left.items] == ["0/0"]


@pytest.mark.parametrize(
    ("notation", "right"), [("letter", "b"), ("letter", " B"), ("index", 1), ("text", "a cat "), ("text", "a cat")]
)
def test_right_options_are_read_in_the_notation_told(notation: str, right: Any) -> None:
    (item,) = with_rows(replace(ROWS[0], answers=(right,)), answers_as=notation).items
    assert item.references == ("B",)


def test_a_metric_that_cannot_score_a_question_names_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"1 of 3 items cannot be used: 2/0: choice_accuracy cannot score it: it has 0 options"
    ):
        task(metrics=["choice_accuracy"]).check([], tmp_path)
    with pytest.raises(
        ValueError, match=r"pope_f1 cannot score it: its right answer is 'B', which is neither yes nor no"
    ):
        task(metrics=["pope_f1"]).check([], tmp_path)


@pytest.mark.parametrize(
    ("field_", "value", "message"),
    [
        ("answers_as", "number", r"task.answers_as='number': Unknown notation 'number'. Choose text, letter or index"),
        ("instruction", "{choices}", r"task.instruction='{choices}': has no {question} in it"),
        ("open_instruction", "why?", r"task.open_instruction='why\?': has no {question} in it"),
        ("choice", "{text}", r"task.choice='{text}': has no {letter} in it"),
        ("prompt", "what", r"prompt='what': has no {question} in it"),
        ("instruction", "{question} {choice}", r"task.instruction=.*: Unknown place 'choice'. Did you mean choices\?"),
        ("context", "{hint}", r"task.context='{hint}': Unknown place 'hint'. Choose context"),
    ],
)
def test_fields_that_cannot_be_are_errors(field_: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**{field_: value})


def test_an_instruction_may_have_latex() -> None:
    boxed = task(instruction="{question}\n{choices}\n\\boxed{letter}")
    assert boxed.items[0].question.endswith("\\boxed{letter}")


def test_a_split_without_its_calibration_samples_may_have_nothing_left() -> None:
    with pytest.raises(ValueError, match=r"task.limit=null: test has 0 items .* without the images of 3 calibration"):
        _ = task(calibration_split="test", apart_from={"samples": 3, "seed": 0}).items


def test_calibration_samples_are_left_out_of_a_split_that_calibrates_as_well(tmp_path: Path) -> None:
    samples = {"samples": 1, "seed": 0}
    one = task(calibration_split="test", apart_from=samples)
    one.check([samples | {"batch_size": 1}], tmp_path)
    assert [item.id for item in one.items] == ["1/0", "2/0"]
    some = replace(one, sample={"seed": 0, "start": 0, "stop": 2})
    assert {item.id for item in some.items} == {"1/0", "2/0"}
    with pytest.raises(ValueError, match=r"1 calibration samples are also evaluated in task.split=test"):
        replace(one, apart_from=None).check([samples | {"batch_size": 1}], tmp_path)


def test_what_a_split_is_apart_from_must_be_its_calibration() -> None:
    told = {"split": "test", "calibration_split": "train", "apart_from": {"samples": 4, "seed": 0}}
    assert list(sample_problems(told | {"calibration_split": "test"})) == []
    assert "task.apart_from: leaves calibration samples out, and task.split=test is not" in next(sample_problems(told))
    assert "task.apart_from=128: give the calibration's own" in next(sample_problems(told | {"apart_from": 128}))
