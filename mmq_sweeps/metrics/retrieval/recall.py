"""Recall@K: the share of queries with a right answer among the first K.

``text_recall_at_k`` retrieves texts by image (any of the image's own texts counts), ``image_recall_at_k`` the image by
each text. ``recall_at_k`` is the mean of the two directions and ``recall_mean`` that of all six, with images as the
items: an image is drawn together with its texts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, MetricBase, Scores

if TYPE_CHECKING:
    from mmq_sweeps.metrics.retrieval.scorer import Ranks

KS = (1, 5, 10)


class DirectedRecall(MetricBase):
    """Recall@k of a ``direction``: ``text`` asks each image for one of its texts, ``image`` each text for its image."""

    needs: ClassVar[str] = "ranks"

    def __init__(self, direction: str, k: int) -> None:
        self.name, self.k = f"{direction}_recall_at_{k}", k
        self.items = "images" if direction == "text" else "texts"

    def score(self, prepared: None, predictions: Ranks) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each image or text 1 or 0."""
        of_images = self.items == "images"
        ranks = predictions.of_texts if of_images else predictions.of_images
        hits = (ranks < self.k).astype(np.float64)
        return Scores.mean(hits, _certain(self.k, predictions, texts=of_images, images=not of_images))


TextRecallAt1, TextRecallAt5, TextRecallAt10 = (partial(DirectedRecall, "text", k) for k in KS)
ImageRecallAt1, ImageRecallAt5, ImageRecallAt10 = (partial(DirectedRecall, "image", k) for k in KS)


class Recall(MetricBase):
    """Mean of both directions, averaged over ``ks``: with several, the R mean of retrieval papers."""

    needs: ClassVar[str] = "ranks"
    items: ClassVar[str] = "images"

    def __init__(self, *ks: int) -> None:
        self.name, self.ks = f"recall_at_{ks[0]}" if len(ks) == 1 else "recall_mean", ks

    def score(self, prepared: None, predictions: Ranks) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each image by the mean of its own hit and its texts' share of hits."""
        images = len(predictions.of_texts)
        texts = np.bincount(predictions.owner, minlength=images)
        found_text = np.mean([predictions.of_texts < k for k in self.ks], axis=0)
        found_image = np.mean([predictions.of_images < k for k in self.ks], axis=0)
        hits = np.bincount(predictions.owner, found_image, minlength=images)
        totals = np.stack([found_text, hits, texts.astype(np.float64)], axis=1)
        value = self.aggregate(totals.sum(axis=0, keepdims=True), images)[0]
        warnings = [warning for k in self.ks for warning in _certain(k, predictions, texts=True, images=True)]
        return Scores(float(value), (found_text + hits / texts) / 2, totals, tuple(warnings))

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Return the mean of the share of images and the share of texts."""
        figure: Floats = (totals[:, 0] / count + totals[:, 1] / totals[:, 2]) / 2
        return figure


RecallAt1, RecallAt5, RecallAt10 = (partial(Recall, k) for k in KS)
RecallMean = partial(Recall, *KS)


def _certain(k: int, ranks: Ranks, texts: bool = False, images: bool = False) -> tuple[str, ...]:
    """Warn if there are too few wrong answers to push a right answer out of the first ``k``."""
    told = []
    if texts:
        count = len(ranks.of_texts)
        wrong = len(ranks.owner) - np.bincount(ranks.owner, minlength=count)
        if sure := int((wrong < k).sum()):
            told.append(
                f"text recall at {k} says nothing for {sure} of {count} images: there are fewer than {k} wrong texts"
            )
    if images and len(ranks.of_texts) <= k:
        told.append(f"image recall at {k} says nothing: the number of images is {len(ranks.of_texts)}")
    return tuple(told)
