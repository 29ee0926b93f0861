"""Visual question answering: a short answer per question, scored overall and by kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmq_sweeps.metrics import AnswerScorer
from mmq_sweeps.metrics.names import load_metrics
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.task import GenerationTask
from mmq_sweeps.tasks.items import problem_of_text


@dataclass(frozen=True, eq=False)
class VqaTask(GenerationTask):
    """Question answering; the reader's examples have ``id``, ``image`` and ``questions``.

    Each question has ``question``, ``answers``, ``kind`` and optionally ``id`` and ``options``; the default id is its
    example's id and its index. Examples may have a ``group`` that their questions share with others', for intervals. ``prompt``
    contains ``{question}``. ``limit`` counts questions.
    """

    known_as: ClassVar[str] = "vqa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r}: has no {{question}} in it")

    def items_of(self, example: Any) -> list[Item]:
        return [
            Item(
                id=getattr(asked, "id", f"{example.id}/{number}"),
                example=example,
                template=self.prompt,
                references=tuple(asked.answers),
                kind=asked.kind,
                question=asked.question,
                options=tuple(getattr(asked, "options", ())),
                group=getattr(example, "group", ""),
            )
            for number, asked in enumerate(example.questions)
        ]

    def problem_of(self, item: Item) -> str | None:
        return problem_of_text("the question", item.question) or super().problem_of(item)

    def problem_of_scoring(self, item: Item) -> str | None:
        for metric in load_metrics(self.metrics):
            check = getattr(metric, "problem_of", None)
            problem: str | None = None if check is None else check(item.references, item.options, item.kind)
            if problem is not None:
                return f"{metric.name} cannot score it: {problem}"
            if len(item.references) < (fewest := getattr(metric, "fewest_answers", 1)):
                return (
                    f"{metric.name} compares answers of at least {fewest} annotators, and it has {len(item.references)} (for "
                    "one right answer use gqa_accuracy)"
                )
        return None

    def make_scorer(self, items: Sequence[Item], cache: Path) -> AnswerScorer:  # noqa: ARG002 - nothing is worth caching
        answers = {item.id: list(item.references) for item in items}
        kinds = {item.id: item.kind for item in items}
        options = {item.id: item.options for item in items if item.options}
        groups = {item.id: item.group for item in items if item.group}
        return AnswerScorer(answers, metrics=self.metrics, types=kinds, options=options, groups=groups)
