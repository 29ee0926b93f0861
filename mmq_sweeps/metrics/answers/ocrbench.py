"""OCRBench (arXiv 2305.07895): does the answer contain a right answer?

As the authors' script: case and line breaks do not count; in handwritten formulas blanks do not count, and case does. The
benchmark has 1,000 questions, so its score of 1,000 is this share times 1,000.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from mmq_sweeps.metrics.base import AnswerMetric, RightAnswers

# The kind of the questions from HME100k, which the script knows by the name of that data set.
FORMULAS = "Handwritten Mathematical Expression Recognition"


class OcrBench(AnswerMetric):
    """1 if the answer contains one of the right answers, else 0."""

    name: ClassVar[str] = "ocrbench"

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[tuple[Callable[[str], str], list[str]]]:
        """Return how each question's texts are compared, and its right answers in that form."""
        known = RightAnswers.of(references)
        folds = [_formula if known.kinds.get(question) == FORMULAS else _text for question in known]
        return [(fold, list(map(fold, right))) for fold, right in zip(folds, known.values(), strict=True)]

    def score_of(self, answer: str, right: tuple[Callable[[str], str], list[str]]) -> float:
        """Return 1 or 0."""
        fold, texts = right
        return any(text in fold(answer) for text in texts)


def _text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
