"""OCRBench (arXiv 2305.07895): is a right answer contained in what the model says?

As the authors' script: case and line breaks do not count; in handwritten formulas blanks do not count, and case does. The
benchmark has 1,000 questions, so its score of 1,000 is this share times 1,000.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, RightAnswers, Scores, mean_of_totals

# The kind of the questions from HME100k, which the script knows by the name of that data set.
FORMULAS = "Handwritten Mathematical Expression Recognition"


class OcrBench:
    """1 if the answer contains one of the right answers, else 0."""

    name: ClassVar[str] = "ocrbench"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[tuple[Callable[[str], str], list[str]]]:
        """Return how each question's texts are compared, and its right answers in that form."""
        known = RightAnswers.of(references)
        folds = [_formula if known.kinds.get(question) == FORMULAS else _text for question in known]
        return [(fold, list(map(fold, right))) for fold, right in zip(folds, known.values(), strict=True)]

    def score(self, prepared: list[tuple[Callable[[str], str], list[str]]], predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(
            np.array([float(any(text in fold(answer) for text in right)) for answer, (fold, right) in pairs])
        )

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Average over questions."""
        return mean_of_totals(totals, count)


def _text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
