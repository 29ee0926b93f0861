"""Score the captions of successive cells against the references of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmq_sweeps.metrics import degenerate
from mmq_sweeps.metrics.base import Metric
from mmq_sweeps.metrics.captions.references import Candidates, References, read_references
from mmq_sweeps.metrics.captions.tokenizer import shared_tokenizer
from mmq_sweeps.metrics.intervals import result_of
from mmq_sweeps.metrics.names import load_metrics
from mmq_sweeps.metrics.result import MetricResult


class CaptionScorer:
    """Scorer of captions; everything that depends only on the references is computed once, here.

    ``references`` maps image id -> captions; their order is the order of every sum. ``cache_dir`` stores the tokenized
    references and their n-grams for other processes.

    Raises ValueError for an unknown metric or an image without references; JavaMissingError if there is no Java.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        metrics: Sequence[str] = ("cider",),
        cache_dir: Path | None = None,
    ) -> None:
        self.metrics: tuple[Metric, ...] = load_metrics(metrics, type(self).__name__, ("captions",))
        self._tokenizer = shared_tokenizer()
        self.references: References = read_references(references, self._tokenizer, cache_dir)
        self._prepared: dict[str, Any] = {metric.name: metric.prepare(self.references) for metric in self.metrics}

    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]:
        """Return every metric of one cell's captions, image id -> caption, for exactly the images of the references.

        Raises ValueError if captions are missing or belong to other images.
        """
        ids = self.references.image_ids
        check_items(ids, predictions, "caption")
        tokens = self._tokenizer.tokenize([predictions[image] for image in ids])
        candidates = Candidates(tuple(tokens), self.references)
        first = [sentences[0] for sentences in self.references.tokens]
        warnings = (
            *degenerate.of_outputs("captions", candidates.tokens, first, degenerate.SAME_CAPTION),
            *degenerate.of_references("image", self.references.tokens),
        )
        alike = degenerate.alike(candidates.tokens, first)
        results = (
            result_of(metric, ids, metric.score(self._prepared[metric.name], candidates)) for metric in self.metrics
        )
        return {result.name: replace(result, alike=alike).warned(*warnings) for result in results}


def check_items(expected: Sequence[str], given: Mapping[str, object], noun: str) -> None:
    """Raise ValueError unless ``given`` has text for exactly the ``expected`` items: no figure may cover fewer."""
    missing = [item for item in expected if item not in given]
    if missing:
        raise ValueError(f"{len(missing)} of {len(expected)} items have no {noun}, for example {missing[0]!r}")
    wanted = set(expected)
    extra = [item for item in given if item not in wanted]
    if extra:
        raise ValueError(f"{len(extra)} {noun}s are for items that were not asked for, for example {extra[0]!r}")
    odd = [item for item in expected if not isinstance(given[item], str)]
    if odd:
        raise ValueError(f"The {noun} of {odd[0]!r} must be text, not {type(given[odd[0]]).__name__}")
