"""Log-likelihood of the right text: how probable a model finds each of its tokens, given those before it.

Predictions are JSON: ``log_likelihood``, the mean over the text's tokens, and ``likeliest``, the log-probabilities of the
likeliest tokens at each place, from which the divergence of one model from another is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Metric, MetricBase, Scores
from mmq_sweeps.metrics.captions.scorer import check_items
from mmq_sweeps.metrics.intervals import result_of
from mmq_sweeps.metrics.names import load_metrics
from mmq_sweeps.metrics.result import MetricResult


class LogLikelihood(MetricBase):
    """Mean natural log-probability of a token of the right text; 0 is certainty."""

    name: ClassVar[str] = "log_likelihood"
    needs: ClassVar[str] = "likelihoods"

    def score(self, prepared: None, predictions: Sequence[float]) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each item by the mean of its tokens."""
        return Scores.mean(np.array(predictions, dtype=np.float64))


class LikelihoodScorer:
    """Scorer of likelihoods of the items ``ids``; raises ValueError for a metric that needs anything else."""

    def __init__(self, ids: Sequence[str], metrics: Sequence[str] = ("log_likelihood",)) -> None:
        self.ids = tuple(ids)
        self.metrics: tuple[Metric, ...] = load_metrics(metrics, type(self).__name__, ("likelihoods",))

    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]:
        """Return every metric of one cell's likelihoods; raises ValueError if some are missing or of other items."""
        check_items(self.ids, predictions, "likelihood")
        found = [json.loads(predictions[item])["log_likelihood"] for item in self.ids]
        return {metric.name: result_of(metric, self.ids, metric.score(None, found)) for metric in self.metrics}
