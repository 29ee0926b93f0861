"""Reading GQA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.published import Asked
from tests.data.layouts import write_gqa


def test_questions_are_with_their_images(tmp_path: Path) -> None:
    write_gqa(tmp_path)
    reader = Gqa(root=str(tmp_path), split="testdev_balanced")
    assert [example.id for example in reader] == ["n161313", "n7"]
    assert reader.paths[1] == tmp_path / "images" / "n7.jpg"
    assert reader[1].questions[0] == Asked("2000001", "Is the sky dark or light, 0?", ("dark",), "choose")
    assert [asked.kind for asked in reader[0].questions] == ["choose", "query", "choose"]
    assert reader[1].image.mode == "RGB"


def test_a_training_split_is_drawn_from(tmp_path: Path) -> None:
    write_gqa(tmp_path, "train_balanced", [str(number) for number in range(2300000, 2300020)], each=1)
    write_gqa(tmp_path)
    drawn = Gqa(root=str(tmp_path), split="train_balanced", count=6, seed=2)
    assert len({example.id for example in drawn}) == 6
    assert not {example.id for example in drawn} & {
        example.id for example in Gqa(root=str(tmp_path), split="testdev_balanced")
    }


def test_another_split_is_missing(tmp_path: Path) -> None:
    write_gqa(tmp_path, "train_balanced")
    told = (
        "testdev_balanced_questions.json is missing. The folder has train_balanced_questions.json.*prepare gqa --root"
    )
    with pytest.raises(ValueError, match=told):
        Gqa(root=str(tmp_path), split="testdev_balanced")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"1": {"question": "?", "answer": "x"}},
            "'1' is no question but has question, answer; expected a questions file",
        ),
        (
            {"1": {"imageId": "7", "question": "?"}},
            "'1' is no question but has imageId, question; expected a questions file such as",
        ),
        ({"questions": []}, r"'questions' is no question but has \[\]"),
        ([], "holds a list; expected a questions file"),
        ({}, "testdev_balanced_questions.json has no images of it"),
    ],
)
def test_a_file_of_another_form(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        len(Gqa(root=str(tmp_path), split="testdev_balanced"))


def test_types_may_be_absent(tmp_path: Path) -> None:
    path = write_gqa(tmp_path)
    content = json.loads(path.read_text())
    for entry in content.values():
        del entry["types"]
    path.write_text(json.dumps(content))
    assert Gqa(root=str(tmp_path), split="testdev_balanced")[0].questions[0].kind == ""
