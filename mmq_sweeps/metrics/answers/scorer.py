"""Score the short answers of successive cells against the answers of one task, overall and by kind."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmq_sweeps.metrics import degenerate
from mmq_sweeps.metrics.answers.normalize import words_of_answer
from mmq_sweeps.metrics.base import Metric, RightAnswers
from mmq_sweeps.metrics.captions.scorer import check_items
from mmq_sweeps.metrics.intervals import figure_of, result_of
from mmq_sweeps.metrics.names import judges, load_metrics
from mmq_sweeps.metrics.probability.confidence import Confident, confidences
from mmq_sweeps.metrics.result import MetricResult


class AnswerScorer:
    """Scorer of answers. ``answers``: question id -> its annotators' answers; ``types``: question id -> kind of answer.

    ``options`` are those of a choice, by question id. ``groups`` says what questions share, such as a picture: intervals draw
    those together.

    Raises ValueError for an unknown metric, a question without answers or one that a metric cannot score, or ``types`` that do
    not cover exactly the questions.
    """

    def __init__(
        self,
        answers: Mapping[str, Sequence[str]],
        metrics: Sequence[str] = ("vqa_accuracy",),
        types: Mapping[str, str] | None = None,
        options: Mapping[str, Sequence[str]] | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self.metrics: tuple[Metric, ...] = load_metrics(metrics, type(self).__name__, ("answers", "confidences"))
        self._judge = self._chosen_judge(metrics)
        if not answers:
            raise ValueError("There are no answers to score against")
        for question, given in answers.items():
            if isinstance(given, str) or not given:
                raise ValueError(f"Question {question!r} needs a list of at least one answer, not {given!r}")
        if types is not None:
            check_items(tuple(answers), types, "type")
        self.question_ids = tuple(answers)
        self._groups = groups or {}
        known = RightAnswers(answers, options, types, groups)
        for metric in self.metrics:
            for question in known:
                if (problem := problem_of_question(metric, known, question)) is not None:
                    raise ValueError(f"{metric.name}: question {question!r}: {problem}")
        self._prepared: dict[str, Any] = {metric.name: metric.prepare(known) for metric in self.metrics}
        # Answers recur, and normalizing takes longer than a lookup.
        self._compared = functools.cache(words_of_answer)
        references = [list(map(self._compared, given)) for given in answers.values()]
        self._right = degenerate.commonest(references)
        kinds = np.array([types[question] for question in answers]) if types is not None else np.array([])
        self._warnings = (
            *degenerate.of_references("question", references),
            *degenerate.of_kinds(list(map(str, kinds))),
        )
        self._kinds = kinds

    def _chosen_judge(self, metrics: Sequence[str]) -> Metric | None:
        """Return the metric by which confidences are judged, if there are any."""
        confident = [metric.name for metric in self.metrics if metric.needs == "confidences"]
        named = dict(zip(metrics, self.metrics, strict=True))
        if not confident:
            return None
        found = [named[name] for name in judges(metrics) if named[name].needs == "answers"]
        if not found:
            raise ValueError(
                f"{', '.join(confident)} needs a metric beside it that says which answers are right, such as gqa_accuracy or "
                "vqa_accuracy"
            )
        return found[0]

    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]:
        """Return every metric of one cell's answers, question id -> answer; ``by_type`` has the figure of each kind.

        For a metric that needs confidences, ``predictions`` have ``log_probabilities`` (``tasks.base.Predictions``); the
        first accuracy beside it, by name, says which answers are right.

        Raises ValueError if answers are missing or belong to other questions.
        """
        check_items(self.question_ids, predictions, "answer")
        answers = [predictions[question] for question in self.question_ids]
        compared = list(map(self._compared, answers))
        warnings = degenerate.of_outputs("answers", compared, self._right, degenerate.SAME_ANSWER) + self._warnings
        alike = degenerate.alike(compared, self._right)
        inputs: dict[str, Any] = {"answers": answers}
        if self._judge is not None:
            right = self._judge.score(self._prepared[self._judge.name], answers).per_item
            inputs["confidences"] = Confident(right, confidences(self.question_ids, predictions))
        results = (self._result(metric, inputs[metric.needs]) for metric in self.metrics)
        return {result.name: replace(result, alike=alike).warned(*warnings) for result in results}

    def _result(self, metric: Metric, inputs: Any) -> MetricResult:
        scores = metric.score(self._prepared[metric.name], inputs)
        kinds, ids = self._kinds, self.question_ids
        if scores.places is not None:
            kinds, ids = kinds[scores.places] if len(kinds) else kinds, tuple(ids[place] for place in scores.places)
        by_type = {str(kind): figure_of(metric, scores.totals[kinds == kind]) for kind in np.unique(kinds)}
        return replace(result_of(metric, ids, scores, self._groups), by_type=by_type)


def problem_of_question(metric: Metric, answers: RightAnswers, question: str) -> str | None:
    """Return why ``metric`` cannot score ``question``, or None."""
    check = getattr(metric, "problem_of", None)
    if check is None:
        return None
    problem: str | None = check(answers[question], answers.options.get(question, ()), answers.kinds.get(question, ""))
    return problem
