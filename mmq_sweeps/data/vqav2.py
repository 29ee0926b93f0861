"""VQA v2 (arXiv 1612.00837): questions about the images of COCO 2014, with ten answers each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from mmq_sweeps.data.published import (
    Asked,
    PublishedData,
    Questioned,
    check_id,
    check_text,
    fields,
    is_other_split,
    listed,
    read_json,
    stamped,
)
from mmq_sweeps.identity.roles import LABEL

_QUESTIONS = (
    "a questions file such as v2_OpenEnded_mscoco_val2014_questions.json, with 'questions' that have "
    "'image_id', 'question' and 'question_id'"
)
_ANNOTATIONS = (
    "an annotations file such as v2_mscoco_val2014_annotations.json, with 'annotations' that have "
    "'question_id', 'image_id' and 'answers'"
)


@dataclass(frozen=True, kw_only=True)
class VqaV2(PublishedData[Questioned]):
    """Reader of the questions and annotations of ``train2014`` or ``val2014``.

    A question's ``kind`` is its answer type: yes/no, number or other. ``file_names`` is the template of an image's file
    name, with ``{id}`` for the image id.
    """

    questions: str = field(default="v2_OpenEnded_mscoco_{split}_questions.json", metadata=LABEL)
    annotations: str = field(default="v2_mscoco_{split}_annotations.json", metadata=LABEL)
    images: str = field(default="{split}", metadata=LABEL)
    file_names: str = field(default="COCO_{split}_{id:012d}.jpg", metadata=LABEL)

    known_as: ClassVar[str] = "vqav2"
    annotated_by: ClassVar[tuple[str, ...]] = ("questions", "annotations")

    def read(self) -> Sequence[Questioned]:
        questions, annotations = self.sources()
        asked = _read(stamped(questions), stamped(annotations))
        for path, split in asked.splits.items():
            if is_other_split(self.split, split):
                self.fail(f"{path} is of another split: its data_subtype is {split}")
        files = self.files_of(asked.by_image)
        return [Questioned(str(image), files[image], found) for image, found in asked.by_image.items()]


@dataclass(frozen=True)
class _Asked:
    """Questions of each image, and the split that each file declares, or an empty string."""

    by_image: Mapping[int | str, tuple[Asked, ...]]
    splits: Mapping[Path, str]


Stamp = tuple[Path, int, int]


@lru_cache(maxsize=4)
def _read(questions: Stamp, annotations: Stamp) -> _Asked:
    asked = read_json(questions[0], _QUESTIONS)
    content = read_json(annotations[0], _ANNOTATIONS, _keep_answers())
    answers = _answers(annotations[0], content)
    by_image: dict[int | str, list[Asked]] = {}
    known: set[int | str] = set()
    for index, entry in enumerate(listed(questions[0], asked, "questions", _QUESTIONS)):
        where = f"questions[{index}]"
        image, question, identity = fields(
            questions[0], where, entry, ("image_id", "question", "question_id"), _QUESTIONS
        )
        if check_id(questions[0], where, identity) in known:
            raise ValueError(f"{questions[0]}: {where} has the question_id {identity} of a question before it")
        known.add(identity)
        answer = answers.pop(identity, None)
        if answer is None or answer[0] != check_id(questions[0], where, image):
            raise ValueError(
                f"{annotations[0]} has no answers to {where} of {questions[0].name} (question_id {identity}, "
                f"image_id {image}): the two files are of different splits, or one is incomplete"
            )
        by_image.setdefault(image, []).append(Asked(str(identity), question, answer[2], answer[1]))
    if answers:
        raise ValueError(
            f"{annotations[0]} answers {len(answers)} questions that {questions[0].name} does not have (the first is "
            f"question_id {next(iter(answers))}): the two files are of different splits, or one is incomplete"
        )
    splits = {
        path: str(found.get("data_subtype", "")) for (path, *_), found in ((questions, asked), (annotations, content))
    }
    return _Asked({image: tuple(found) for image, found in by_image.items()}, splits)


def _keep_answers() -> Any:
    """Return a JSON hook that replaces each of millions of answer objects by its text: a tenth of the memory."""
    texts: dict[str, str] = {}

    def keep(entry: dict[str, Any]) -> Any:
        if "answer" in entry and "question_id" not in entry:
            answer = entry["answer"]
            return texts.setdefault(answer, answer) if isinstance(answer, str) else answer
        return entry

    return keep


def _answers(path: Path, content: Mapping[str, Any]) -> dict[int | str, tuple[int | str, str, tuple[str, ...]]]:
    """Return image id, answer type and answers of each question id."""
    found = {}
    for index, entry in enumerate(listed(path, content, "annotations", _ANNOTATIONS)):
        where = f"annotations[{index}]"
        identity, image, answers = fields(path, where, entry, ("question_id", "image_id", "answers"), _ANNOTATIONS)
        if not isinstance(answers, list) or any(isinstance(answer, dict) for answer in answers):
            raise ValueError(f"{path}: {where} needs a list of answers, each with an 'answer'")
        if check_id(path, where, identity) in found:
            raise ValueError(f"{path}: {where} has the question_id {identity} of an annotation before it")
        kind = check_text(path, where, "answer_type", entry.get("answer_type", ""))
        found[identity] = (image, kind, tuple(answers))
    return found
