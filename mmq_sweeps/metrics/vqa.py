"""VQA accuracy as the official evaluation computes it (Antol et al., arXiv 1505.00468; VQAv2, arXiv 1612.00837).

An answer that at least three of the other annotators gave is right: for each annotator, min(1, matches among the others
/ 3), averaged. The model's answer is normalized in full; the annotators' answers lose their signs only, and only where
they are not all the same, since the released annotations are normalized already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Floats, Scores, mean_of_totals
from mmq_sweeps.metrics.normalize import normalize_answer, strip_signs

_AGREEING = 3


class VqaAccuracy:
    """The official script's accuracy, as a fraction and unrounded."""

    name: ClassVar[str] = "vqa_accuracy"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """The annotators' answers as they are compared. ValueError: too few annotators for any answer to be right."""
        for question, answers in references.items():
            if len(answers) <= _AGREEING:
                raise ValueError(
                    f"vqa_accuracy compares an answer with at least {_AGREEING + 1} annotators'; "
                    f"{question!r} has {len(answers)}. For one right answer use gqa_accuracy"
                )
        return [_as_compared(answers) for answers in references.values()]

    def score(self, prepared: list[list[str]], predictions: Sequence[str]) -> Scores:
        """Scores of answers in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([_accuracy(normalize_answer(answer), given) for answer, given in pairs]))

    def aggregate(self, totals: Floats, count: int) -> Floats:
        """The mean over questions."""
        return mean_of_totals(totals, count)


def _as_compared(answers: Sequence[str]) -> list[str]:
    return [strip_signs(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)


def _accuracy(answer: str, given: Sequence[str]) -> float:
    matches = given.count(answer)
    return sum(min(1.0, (matches - (other == answer)) / _AGREEING) for other in given) / len(given)
