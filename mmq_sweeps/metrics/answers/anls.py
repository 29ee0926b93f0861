"""Average normalized Levenshtein similarity (ANLS) of answers read from pictures: ST-VQA (arXiv 1907.00490), DocVQA.

As the script of the authors' competitions: blanks and case do not count for the distance, but the length it is divided by is
that of the texts as they are. What is less than half alike scores 0; the paper leaves out exactly half as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rapidfuzz.distance import Levenshtein

from mmq_sweeps.metrics.base import AnswerMetric

THRESHOLD = 0.5


class Anls(AnswerMetric):
    """Similarity of the answer to the right answer most like it, from 0 to 1."""

    name: ClassVar[str] = "anls"
    definition: ClassVar[str] = f"threshold {THRESHOLD}, script of the ST-VQA and DocVQA competitions"

    def score_of(self, answer: str, right: Sequence[str]) -> float:
        """Return the ``similarity``."""
        return similarity(answer, right)


def similarity(answer: str, right: Sequence[str]) -> float:
    """Return how alike ``answer`` is to the most similar of ``right``; 0 below the threshold."""
    best = 1 - min(_distance(text, answer) for text in right)
    return best if best >= THRESHOLD else 0.0


def _distance(right: str, answer: str) -> float:
    length = max(len(right.upper()), len(answer.upper()))
    return Levenshtein.distance(_folded(right), _folded(answer)) / length if length else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
