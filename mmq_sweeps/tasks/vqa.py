"""Visual question answering: a short answer a question, scored in all and by kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmq_sweeps.metrics import AnswerScorer
from mmq_sweeps.tasks.generation import GenerationTask, Item


@dataclass(frozen=True, eq=False)
class VqaTask(GenerationTask):
    """The reader's examples have ``id``, ``image`` and ``questions`` with ``question``, ``answers`` and ``kind``.

    A question may have an ``id``; else it is named after its example and its place. ``prompt`` holds ``{question}``.
    ``limit`` counts questions.
    """

    known_as: ClassVar[str] = "vqa"

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r}: has no {{question}} in it")

    def items_of(self, example: Any) -> list[Item]:
        return [
            Item(
                id=getattr(asked, "id", f"{example.id}/{number}"),
                example=example,
                # Not str.format: a chat format may have braces of its own.
                prompt=self.prompt.replace("{question}", asked.question),
                references=tuple(asked.answers),
                kind=asked.kind,
            )
            for number, asked in enumerate(example.questions)
        ]

    def make_scorer(self, items: Sequence[Item], cache: Path) -> AnswerScorer:  # noqa: ARG002 - nothing is worth keeping
        answers = {item.id: list(item.references) for item in items}
        kinds = {item.id: item.kind for item in items}
        return AnswerScorer(answers, metrics=sorted(set(self.metrics)), types=kinds)
