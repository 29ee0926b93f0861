"""ROUGE-L as pycocoevalcap 1.2 computes it (Lin, ROUGE, 2004): longest common subsequence, beta 1.2.

Precision and recall are each the best over the references, possibly of different references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import MetricBase, Scores
from mmq_sweeps.metrics.captions.references import Candidates, References

_BETA = 1.2


@dataclass(frozen=True)
class Positions:
    """Length of a reference in words, and each word's positions as a bit mask."""

    length: int
    places: dict[str, int]

    @staticmethod
    def of(sentence: str) -> Positions:
        words = sentence.split(" ")
        places: dict[str, int] = {}
        for index, word in enumerate(words):
            places[word] = places.get(word, 0) | 1 << index
        return Positions(len(words), places)


class RougeL(MetricBase):
    """pycocoevalcap's ``Rouge``; as there, an empty caption is a single empty word."""

    name: ClassVar[str] = "rouge_l"
    needs: ClassVar[str] = "captions"

    def prepare(self, references: References) -> list[list[Positions]]:
        """Index the positions of every word of every reference."""
        return [[Positions.of(sentence) for sentence in sentences] for sentences in references.tokens]

    def score(self, prepared: list[list[Positions]], predictions: Candidates) -> Scores:
        """Score tokenized captions in the order of the images."""
        pairs = zip(predictions.tokens, prepared, strict=True)
        return Scores.mean(np.array([_rouge(caption.split(" "), references) for caption, references in pairs]))


def _rouge(words: Sequence[str], references: Sequence[Positions]) -> float:
    common = [longest_common_subsequence(words, reference) for reference in references]
    precision = max(length / float(len(words)) for length in common)
    recall = max(length / float(reference.length) for length, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return ((1 + _BETA**2) * precision * recall) / float(recall + _BETA**2 * precision)


def longest_common_subsequence(words: Sequence[str], reference: Positions) -> int:
    """Return its length; each row of the dynamic programming table is an integer (Hyyrö, 2004)."""
    full = (1 << reference.length) - 1
    row = full
    for word in words:
        matched = row & reference.places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return reference.length - row.bit_count()
