"""Metrics of captions, answers and retrieval: per-item scores, figures equal to the published tools', intervals.

Names resolve immediately; modules that need numpy, pycocoevalcap or Java are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmq_sweeps.metrics.names import check_metric_names, load_metric, metric_names
from mmq_sweeps.metrics.result import MetricResult

if TYPE_CHECKING:
    from mmq_sweeps.metrics.answers.scorer import AnswerScorer
    from mmq_sweeps.metrics.captions.scorer import CaptionScorer
    from mmq_sweeps.metrics.intervals import paired_difference, paired_differences
    from mmq_sweeps.metrics.retrieval.scorer import RetrievalScorer

__all__ = [
    "AnswerScorer",
    "CaptionScorer",
    "MetricResult",
    "RetrievalScorer",
    "check_metric_names",
    "load_metric",
    "metric_names",
    "paired_difference",
    "paired_differences",
]

_LATER = {
    "AnswerScorer": "answers.scorer",
    "CaptionScorer": "captions.scorer",
    "RetrievalScorer": "retrieval.scorer",
    "paired_difference": "intervals",
    "paired_differences": "intervals",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
