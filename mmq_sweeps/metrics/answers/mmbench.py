"""CircularEval of MMBench (arXiv 2307.06281): a choice is right if it is right in every order of its options.

The data have a row for each order, as many as there are options; the ids of one question's rows differ by multiples of a
million. Answers are read as for ``choice_accuracy``; the authors leave those that name no option to a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.answers.choice import ChoiceAccuracy
from mmq_sweeps.metrics.base import Count, Floats, MetricBase, RightAnswers, Scores, share

ORDERS_APART = 1_000_000


@dataclass(frozen=True)
class Orders:
    """The letters and options of each row, the question that it is an order of, and how many questions lack orders."""

    choices: list[tuple[frozenset[str], tuple[str, ...]]]
    question: NDArray[np.intp]
    incomplete: int


class MmBench(MetricBase):
    """Share of questions that are right in every order; the score of a row is that of its question."""

    name: ClassVar[str] = "mmbench"
    needs: ClassVar[str] = "answers"
    definition: ClassVar[str] = "CircularEval, nothing guessed"
    _choice: ClassVar[ChoiceAccuracy] = ChoiceAccuracy()

    def problem_of(self, answers: Sequence[str], options: Sequence[str], kind: str) -> str | None:
        """Return why a question cannot be scored: its right answers must be letters of its options."""
        return self._choice.problem_of(answers, options, kind)

    def prepare(self, references: RightAnswers) -> Orders:
        """Find the rows of each question; raises ValueError for an id that is no whole number."""
        known = RightAnswers.of(references)
        if wrong := next((row for row in known if not row.isdecimal()), None):
            raise ValueError(
                f"{self.name} knows the orders of a question by ids, which must be whole numbers as MMBench's index, and one "
                f"is {wrong!r}; give that column as task.data.id, or leave {self.name} out of task.metrics"
            )
        _, question = np.unique([int(row) % ORDERS_APART for row in known], return_inverse=True)
        wanted = np.array([len(own) for own in known.choices()])
        incomplete = np.unique(question[np.bincount(question)[question] < wanted]).size
        return Orders(self._choice.prepare(known), question, incomplete)

    def score(self, prepared: Orders, predictions: Sequence[str]) -> Scores:
        """Score each row 1 or 0, in the order of the rows."""
        read = self._choice.score(prepared.choices, predictions)
        rows = np.bincount(prepared.question)
        right = (np.bincount(prepared.question, read.per_item) == rows).astype(np.float64)[prepared.question]
        weight = 1 / rows[prepared.question]
        totals = np.stack([right * weight, weight], axis=1)
        value = float(self.aggregate(totals.sum(axis=0, keepdims=True), len(right))[0])
        few = f"{prepared.incomplete} of {len(rows)} questions are asked in fewer orders than they have options"
        return Scores(value, right, totals, (*read.warnings, *([few] if prepared.incomplete else [])))

    def aggregate(self, totals: Floats, count: Count) -> Floats:  # noqa: ARG002 (part of a metric)
        """Return right questions over questions."""
        return share(totals[:, 0], totals[:, 1])
