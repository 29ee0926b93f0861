"""VQA accuracy by the authors' evaluation script (Antol et al., arXiv 1505.00468; VQAv2, arXiv 1612.00837), both versions.

An answer that at least three of the other annotators gave is right: for each annotator, min(1, matches among the others
/ 3), averaged. The versions differ in what is normalized before it is compared:

- before March 2021, which LAVIS copies: the model's answer always and in full; the annotators' answers lose their signs
  only, and only where they are not all the same.
- since then (GT-Vision-Lab/VQA, commit a013f00): both sides in full where the annotators' answers are not all the same,
  neither where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Floats, Scores, mean_of_totals
from mmq_sweeps.metrics.normalize import normalize_answer, on_one_line, strip_signs

_AGREEING = 3


@dataclass(frozen=True)
class Given:
    """The annotators' ``answers`` to one question as they are compared; ``normalized``: with the model's normalized."""

    answers: list[str]
    normalized: bool


class VqaAccuracy:
    """The accuracy of the script before March 2021, as a fraction and unrounded."""

    name: ClassVar[str] = "vqa_accuracy"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = True
    definition: ClassVar[str] = "VQA script before March 2021, as in LAVIS"

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[Given]:
        """The annotators' answers as they are compared. ValueError: too few annotators for any answer to be right."""
        for question, answers in references.items():
            if len(answers) <= _AGREEING:
                raise ValueError(
                    f"{self.name} compares an answer with at least {_AGREEING + 1} annotators'; "
                    f"{question!r} has {len(answers)}. For one right answer use gqa_accuracy"
                )
        return [self._given(answers) for answers in references.values()]

    def score(self, prepared: list[Given], predictions: Sequence[str]) -> Scores:
        """Scores of answers in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([_accuracy(answer, given) for answer, given in pairs]))

    def aggregate(self, totals: Floats, count: int) -> Floats:
        """The mean over questions."""
        return mean_of_totals(totals, count)

    def _given(self, answers: Sequence[str]) -> Given:
        kept = [strip_signs(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
        return Given(kept, normalized=True)


class VqaAccuracy2021(VqaAccuracy):
    """The accuracy of the authors' present script, as a fraction and unrounded."""

    name: ClassVar[str] = "vqa_accuracy_2021"
    definition: ClassVar[str] = "VQA script since March 2021, GT-Vision-Lab/VQA a013f00"

    def _given(self, answers: Sequence[str]) -> Given:
        trimmed = list(map(on_one_line, answers))
        if len(set(trimmed)) > 1:
            return Given(list(map(normalize_answer, trimmed)), normalized=True)
        return Given(trimmed, normalized=False)


def _accuracy(answer: str, given: Given) -> float:
    compared = normalize_answer(answer) if given.normalized else on_one_line(answer)
    matches = given.answers.count(compared)
    agreeing = (matches - (other == compared) for other in given.answers)
    return sum(min(1.0, count / _AGREEING) for count in agreeing) / len(given.answers)
