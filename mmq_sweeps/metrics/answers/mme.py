"""MME (arXiv 2306.13394): two questions about each picture, one whose answer is yes and one whose answer is no.

As the authors' ``calculation.py``: an answer is yes or no if its first four letters hold that word in either case, and else
wrong. A kind of question scores its accuracy plus the share of pictures with both answers right (accuracy+), each of 100;
perception is the sum over ten kinds (2,000), cognition over four (800), ``mme`` over all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.answers.pope import problem_of_yes_no, yes_or_no
from mmq_sweeps.metrics.base import Count, Floats, MetricBase, RightAnswers, Scores, mean_of_totals, share
from mmq_sweeps.metrics.degenerate import of_neither

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PREFIX = 4


@dataclass(frozen=True)
class Pairs:
    """The ``right`` answer, the other question about the same picture (``partner``), and the ``kind`` of each question."""

    right: list[str]
    partner: NDArray[np.intp]
    kind: list[str]


class Mme(MetricBase):
    """The score of all kinds together; the score of an item is whether it is right."""

    name: ClassVar[str] = "mme"
    needs: ClassVar[str] = "answers"
    kinds: ClassVar[tuple[str, ...]] = PERCEPTION + COGNITION

    def problem_of(self, answers: Sequence[str], options: Sequence[str], kind: str) -> str | None:  # noqa: ARG002
        """Return why a question cannot be scored: its right answer must be yes or no, and its kind one of MME's."""
        if kind not in PERCEPTION + COGNITION:
            return f"its kind is {kind!r}, which is none of MME's: {', '.join(PERCEPTION + COGNITION)}"
        return problem_of_yes_no(answers)

    def prepare(self, references: RightAnswers) -> Pairs:
        """Pair the questions by their group.

        Raises ValueError if a group is not of two questions, or none is of the metric's kinds.
        """
        known = RightAnswers.of(references)
        kind = [known.kinds.get(question, "") for question in known]
        if not set(kind) & set(self.kinds):
            raise ValueError(
                f"{self.name} is of other kinds than the {len(kind)} questions ({', '.join(dict.fromkeys(kind))}); leave it "
                "out of task.metrics, or take more questions by task.limit"
            )
        right = [yes_or_no(answers[0]) for answers in known.values()]
        return Pairs(right, _partners(known, self.name), kind)

    def score(self, prepared: Pairs, predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions, leaving out those of other kinds."""
        pairs = zip(predictions, prepared.right, strict=True)
        right = np.array([float(said(answer) == wanted) for answer, wanted in pairs])
        both = right * right[prepared.partner]
        places = np.array([place for place, kind in enumerate(prepared.kind) if kind in self.kinds])
        totals = self._totals(right[places], both[places], [prepared.kind[place] for place in places])
        value = float(self.aggregate(totals.sum(axis=0, keepdims=True), len(places))[0])
        neither = sum(said(predictions[place]) == "other" for place in places)
        warnings = of_neither(neither, len(places), "are wrong")
        return Scores(value, self._per_item(right, both)[places], totals, warnings, places)

    def aggregate(self, totals: Floats, count: Count) -> Floats:  # noqa: ARG002 (part of a metric)
        """Sum the scores of the kinds; one without questions adds nothing."""
        points, questions = np.split(totals, 2, axis=1)
        figure: Floats = 100 * share(points, questions).sum(axis=1)
        return figure

    def _per_item(self, right: Floats, both: Floats) -> Floats:  # noqa: ARG002
        return right

    def _totals(self, right: Floats, both: Floats, kinds: Sequence[str]) -> Floats:
        """Return a row per item: its points in the column of its kind, and 1 in that of the kind's questions."""
        totals = np.zeros((len(right), 2, len(self.kinds)))
        columns = [self.kinds.index(kind) for kind in kinds]
        # Both questions of a picture have its point for accuracy+, and it is divided by questions, not by pictures.
        totals[np.arange(len(right)), 0, columns] = right + both
        totals[np.arange(len(right)), 1, columns] = 1
        return totals.reshape(len(right), -1)


class MmePerception(Mme):
    """The score of the ten kinds of perception, of 2,000."""

    name: ClassVar[str] = "mme_perception"
    kinds: ClassVar[tuple[str, ...]] = PERCEPTION


class MmeCognition(Mme):
    """The score of the four kinds of cognition, of 800."""

    name: ClassVar[str] = "mme_cognition"
    kinds: ClassVar[tuple[str, ...]] = COGNITION


class MmeAccuracy(Mme):
    """Share of right answers, over all kinds."""

    name: ClassVar[str] = "mme_accuracy"

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Average over questions."""
        return mean_of_totals(totals, count)

    def _totals(self, right: Floats, both: Floats, kinds: Sequence[str]) -> Floats:  # noqa: ARG002
        return self._per_item(right, both)[:, None]


class MmeAccuracyPlus(MmeAccuracy):
    """Share of pictures with both answers right, over all kinds; both questions have the score of their picture."""

    name: ClassVar[str] = "mme_accuracy_plus"

    def _per_item(self, right: Floats, both: Floats) -> Floats:  # noqa: ARG002
        return both


def said(answer: str) -> str:
    """Return ``yes``, ``no`` or ``other``, as the authors' script reads an answer."""
    beginning = answer.lower()[:_PREFIX]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def _partners(known: RightAnswers, name: str) -> NDArray[np.intp]:
    """Return the place of the other question about each question's picture."""
    groups = [known.groups.get(question, question) for question in known]
    if wrong := {group: count for group, count in Counter(groups).items() if count != 2}:
        group, count = next(iter(wrong.items()))
        raise ValueError(
            f"{name} is of two questions about each picture, and {len(wrong)} of {len(set(groups))} have another "
            f"number, for example {group!r} with {count}; give the column that tells pictures apart as task.data.group, an "
            "even task.limit, and no task.sample"
        )
    order = np.argsort(np.unique(groups, return_inverse=True)[1], kind="stable")
    partner = np.empty(len(groups), dtype=np.intp)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner
