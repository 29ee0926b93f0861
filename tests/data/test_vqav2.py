"""Reading VQA v2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmq_sweeps.data.published import Asked
from mmq_sweeps.data.vqav2 import VqaV2
from tests.data.layouts import write_picture, write_vqav2


def read(root: Path, split: str = "val2014", **fields: object) -> VqaV2:
    return VqaV2(root=str(root), split=split, **fields)  # type: ignore[arg-type]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_questions_are_with_their_images(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    reader = read(tmp_path)
    assert [example.id for example in reader] == ["262148", "42", "393225"]
    assert reader.paths[1] == tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    assert reader[1].questions == (
        Asked("42000", "What is 0?", ("2",) * 8 + ("maybe",) * 2, "number"),
        Asked("42001", "What is 1?", ("yes",) * 8 + ("maybe",) * 2, "yes/no"),
    )
    assert [path.name for path in reader.sources()] == [
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
    ]
    assert [example.id for example in read(tmp_path, count=1)] == ["262148"]
    assert reader[0].image.mode == "RGB"


def test_a_training_split_is_drawn_from(tmp_path: Path) -> None:
    write_vqav2(tmp_path, "train2014", range(500, 530))
    drawn = [example.id for example in read(tmp_path, "train2014", count=5, seed=7)]
    assert len(set(drawn)) == 5
    assert drawn == [example.id for example in read(tmp_path, "train2014", count=9, seed=7)][:5]


def test_own_images_have_own_names(tmp_path: Path) -> None:
    write_vqav2(tmp_path, ids=(7, 8))
    shutil.rmtree(tmp_path / "val2014")
    for number in (7, 8):
        write_picture(tmp_path / "my images" / f"no-{number}.jpg", number)
    assert len(read(tmp_path, images="my images", file_names="no-{id}.jpg")) == 2


def test_files_of_different_splits(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    write_vqav2(tmp_path, "train2014", (1, 2))
    with pytest.raises(
        ValueError, match=r"train2014_annotations.json has no answers to questions\[0\] of v2_Open.*val"
    ):
        len(read(tmp_path, annotations="v2_mscoco_train2014_annotations.json"))
    with pytest.raises(
        ValueError, match=r"train2014_questions.json is of another split: its data_subtype is train2014"
    ):
        len(
            read(
                tmp_path,
                questions="v2_OpenEnded_mscoco_train2014_questions.json",
                annotations="v2_mscoco_train2014_annotations.json",
            )
        )


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    questions = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(questions.read_text())
    dropped = content["questions"].pop()
    questions.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"answers 1 questions that .* does not have .*{dropped['question_id']}"):
        len(read(tmp_path))
    content["questions"] += [dropped, dropped]
    questions.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"questions\[6\] has the question_id {dropped['question_id']} of a"):
        len(read(tmp_path))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "annotations",
            '"annotations": [',
            '"images": [',
            "has no list 'annotations' but info, license, data_type, data_",
        ),
        ("annotations", '"answers"', '"answer_list"', r"annotations\[0\] has no 'answers' but question_type"),
        ("annotations", '"answer": "yes"', '"text": "yes"', "needs a list of answers, each with an 'answer'"),
        ("annotations", '"image_id": 42', '"image_id": 43', r"no answers to questions\[1\]"),
        ("annotations", "}]}", "}", "is cut short or no JSON"),
        ("questions", '"question": ', '"text": ', r"questions\[0\] has no 'question' but image_id, text, question_id"),
    ],
)
def test_a_file_of_another_form(file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    (path,) = tmp_path.glob(f"*_{file}.json")
    change(path, old, new)
    with pytest.raises(ValueError, match=message):
        len(read(tmp_path))
