"""Average normalized Levenshtein similarity (ANLS) of answers read from pictures: ST-VQA (arXiv 1907.00490), DocVQA.

As the script of the authors' competitions: blanks and case do not count for the distance, but the length it is divided by is
that of the texts as they are. What is less than half alike scores 0; the paper leaves out exactly half as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from rapidfuzz.distance import Levenshtein

from mmq_sweeps.metrics.base import Count, Floats, Scores, mean_of_totals

THRESHOLD = 0.5


class Anls:
    """Similarity of the answer to the right answer most like it, from 0 to 1."""

    name: ClassVar[str] = "anls"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = True
    definition: ClassVar[str] = f"threshold {THRESHOLD}, script of the ST-VQA and DocVQA competitions"

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
        """Return the right answers in the order of the questions."""
        return list(references.values())

    def score(self, prepared: list[Sequence[str]], predictions: Sequence[str]) -> Scores:
        """Score each answer, in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([similarity(answer, right) for answer, right in pairs]))

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Average over questions."""
        return mean_of_totals(totals, count)


def similarity(answer: str, right: Sequence[str]) -> float:
    """Return how alike ``answer`` is to the most similar of ``right``; 0 below the threshold."""
    best = 1 - min(_distance(text, answer) for text in right)
    return best if best >= THRESHOLD else 0.0


def _distance(right: str, answer: str) -> float:
    length = max(len(right.upper()), len(answer.upper()))
    return Levenshtein.distance(_folded(right), _folded(answer)) / length if length else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
