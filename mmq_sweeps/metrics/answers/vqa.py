"""VQA accuracy by both versions of the authors' evaluation script.

Antol et al., arXiv 1505.00468; VQAv2, arXiv 1612.00837. An answer that at least three of the other annotators gave is
right: for each annotator, min(1, matches among the others / 3), averaged. The versions differ in the normalization
before the comparison:

- before March 2021, which LAVIS copies: the model's answer is always fully normalized; the annotators' answers lose only
  their signs, and only if they are not all the same.
- since then (GT-Vision-Lab/VQA, commit a013f00): both sides are fully normalized if the annotators' answers are not all
  the same; otherwise neither is.

Two benchmarks took the accuracy over with a normalization of their own:

- TextVQA (arXiv 1904.08920), in its authors' mmf: both sides always, without commas and question marks, and with ``'s`` apart.
- VizWiz (arXiv 1802.08218): the model's answer always, the annotators' never; they are published normalized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmq_sweeps.metrics.answers.normalize import normalize_answer, on_one_line, strip_signs
from mmq_sweeps.metrics.base import AnswerMetric

_AGREEING = 3
# Fewest annotators of a question: below, no answer could be right.
FEWEST = _AGREEING + 1


@dataclass(frozen=True)
class Given:
    """Annotators' ``answers`` to a question in the form to compare; ``normalized``: also normalize the model's answer."""

    answers: list[str]
    normalized: bool


class VqaAccuracy(AnswerMetric):
    """Accuracy by the script before March 2021, as a fraction and unrounded."""

    name: ClassVar[str] = "vqa_accuracy"
    fewest_answers: ClassVar[int] = FEWEST
    definition: ClassVar[str] = "VQA script before March 2021, as in LAVIS"

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[Given]:
        """Return the annotators' answers in the form to compare.

        Raises ValueError if there are too few annotators for any answer to be right.
        """
        for question, answers in references.items():
            if len(answers) < FEWEST:
                raise ValueError(
                    f"{self.name} compares an answer with at least {FEWEST} annotators'; "
                    f"{question!r} has {len(answers)}. For one right answer use gqa_accuracy"
                )
        return [self._given(answers) for answers in references.values()]

    def score_of(self, answer: str, right: Given) -> float:
        """Return the mean over the annotators of how many of the others agree with ``answer``, at most three, over three."""
        compared = normalize_answer(answer) if right.normalized else on_one_line(answer)
        matches = right.answers.count(compared)
        agreeing = (matches - (other == compared) for other in right.answers)
        return sum(min(1.0, count / _AGREEING) for count in agreeing) / len(right.answers)

    def _given(self, answers: Sequence[str]) -> Given:
        kept = [strip_signs(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
        return Given(kept, normalized=True)


class VqaAccuracy2021(VqaAccuracy):
    """Accuracy by the authors' present script, as a fraction and unrounded."""

    name: ClassVar[str] = "vqa_accuracy_2021"
    definition: ClassVar[str] = "VQA script since March 2021, GT-Vision-Lab/VQA a013f00"

    def _given(self, answers: Sequence[str]) -> Given:
        trimmed = list(map(on_one_line, answers))
        if len(set(trimmed)) > 1:
            return Given(list(map(normalize_answer, trimmed)), normalized=True)
        return Given(trimmed, normalized=False)


class TextVqaAccuracy(VqaAccuracy):
    """Accuracy of TextVQA's authors, as a fraction and unrounded."""

    name: ClassVar[str] = "textvqa_accuracy"
    definition: ClassVar[str] = "EvalAI answer processor of mmf, both sides"

    def score_of(self, answer: str, right: Given) -> float:
        """Return the accuracy of ``answer``, normalized as TextVQA's authors do."""
        return super().score_of(_apart(answer), right)

    def _given(self, answers: Sequence[str]) -> Given:
        return Given([normalize_answer(_apart(answer)) for answer in answers], normalized=True)


class VizWizAccuracy(VqaAccuracy):
    """Accuracy of VizWiz's authors, as a fraction and unrounded."""

    name: ClassVar[str] = "vizwiz_accuracy"
    definition: ClassVar[str] = "VizWiz script: the annotators' answers as they are"

    def _given(self, answers: Sequence[str]) -> Given:
        return Given(list(answers), normalized=True)


def _apart(answer: str) -> str:
    """Apply the normalization of TextVQA's authors that comes ahead of the script's."""
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
