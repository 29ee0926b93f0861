"""Retrieval between images and texts, in both directions, from one matrix of scores.

Ties are broken against the model: anything that ties with the right answer ranks before it. A NaN or infinite score
counts as the lowest, and a right answer with such a score is never found. A model that gives every pair the same score
therefore recalls nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmq_sweeps.metrics import degenerate
from mmq_sweeps.metrics.base import Floats, Metric
from mmq_sweeps.metrics.intervals import result_of
from mmq_sweeps.metrics.names import load_metrics
from mmq_sweeps.metrics.result import MetricResult

# Rank of a right answer without a score: not among the first K for any K.
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Ranks:
    """Ranks from 0: of each image's best own text among the texts of others ``[I]``, of each text's image ``[T]``.

    ``owner`` ``[T]`` is the index of each text's image.
    """

    of_texts: NDArray[np.int64]
    of_images: NDArray[np.int64]
    owner: NDArray[np.int64]

    @staticmethod
    def of(by_image: Floats, owner: NDArray[np.int64], by_text: Floats | None = None) -> Ranks:
        """Rank texts in the rows of ``by_image`` ``[I, T]`` and images in the columns of ``by_text`` ``[I, T]``.

        Higher is more alike. Minus infinity ranks after all others; NaN and plus infinity are no score, and a right
        answer without a score gets the rank ``NEVER``. ``by_text`` defaults to ``by_image``. Texts lie in the order of
        their images.
        """
        by_text = by_image if by_text is None else by_text
        places = np.arange(len(owner))
        first = np.searchsorted(owner, np.arange(len(by_image)))
        rows, columns = _lowest_unless_scored(by_image), _lowest_unless_scored(by_text)
        own = rows[owner, places]
        best = np.maximum.reduceat(own, first)
        ties_of_its_own = np.add.reduceat((own >= best[owner]).astype(np.int64), first)
        of_texts = (rows >= best[:, None]).sum(axis=1) - ties_of_its_own
        of_images = (columns >= columns[owner, places]).sum(axis=0) - 1
        any_scored = np.logical_or.reduceat(_scored(by_image[owner, places]), first)
        return Ranks(
            of_texts=np.where(any_scored, of_texts, NEVER),
            of_images=np.where(_scored(by_text[owner, places]), of_images, NEVER),
            owner=owner,
        )


class RetrievalScorer:
    """Scorer of image-text similarity matrices. ``texts``: image id -> ids of its texts.

    Raises ValueError for an unknown metric, an image without texts, or a text id that occurs twice.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], metrics: Sequence[str] = ("recall_at_1",)) -> None:
        self.metrics: tuple[Metric, ...] = load_metrics(metrics, type(self).__name__, ("ranks",))
        for image, ids in texts.items():
            if isinstance(ids, str) or not ids:
                raise ValueError(f"Image {image!r} needs a list of at least one text id, not {ids!r}")
        self.image_ids = tuple(texts)
        self.text_ids = tuple(text for ids in texts.values() for text in ids)
        if not texts or len(set(self.text_ids)) != len(self.text_ids):
            raise ValueError("Retrieval needs images, and every text id once")
        self._prepared: dict[str, Any] = {metric.name: metric.prepare(texts) for metric in self.metrics}
        # The index of each text's image.
        self.owner = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts.values()])

    def score(self, scores: ArrayLike) -> dict[str, MetricResult]:
        """Return every metric of ``scores`` ``[images, texts]``, in the order of ``image_ids`` and ``text_ids``.

        Raises ValueError if the shape differs.
        """
        matrix = np.asarray(scores, dtype=np.float64)
        expected = (len(self.image_ids), len(self.text_ids))
        if matrix.shape != expected:
            raise ValueError(f"Scores are {matrix.shape}; {expected[0]} images and {expected[1]} texts need {expected}")
        wrong = ~_scored(matrix)
        warnings = degenerate.of_scores([bool(row.any()) for row in wrong], [bool(column.any()) for column in wrong.T])
        found = self.score_ranks(Ranks.of(matrix, self.owner))
        return {name: result.warned(*warnings) for name, result in found.items()}

    def score_ranks(self, ranks: Ranks) -> dict[str, MetricResult]:
        """Return every metric of precomputed ranks, in the order of ``image_ids`` and ``text_ids``."""
        items = {"images": self.image_ids, "texts": self.text_ids}
        scored = ((metric, metric.score(self._prepared[metric.name], ranks)) for metric in self.metrics)
        return {
            metric.name: result_of(metric, items[getattr(metric, "items", "images")], scores)
            for metric, scores in scored
        }


def _scored(scores: Floats) -> NDArray[np.bool_]:
    """Return which entries are scores: neither NaN nor plus infinity."""
    return scores < np.inf


def _lowest_unless_scored(scores: Floats) -> Floats:
    lowest: Floats = np.where(_scored(scores), scores, -np.inf)
    return lowest
