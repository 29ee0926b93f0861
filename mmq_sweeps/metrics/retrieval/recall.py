"""Recall@K: the share of queries with a right answer among the first K.

``text_recall_at_k`` retrieves texts by image (any of the image's own texts counts), ``image_recall_at_k`` the image by
each text. ``recall_at_k`` is the mean of the two directions and ``recall_mean`` that of all six, with images as the
items: an image is drawn together with its texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, Scores, mean_of_totals

if TYPE_CHECKING:
    from mmq_sweeps.metrics.retrieval.scorer import Ranks


class TextRecallAt1:
    """Image queries: is one of the image's texts among the first ``k``?"""

    name: ClassVar[str] = "text_recall_at_1"
    needs: ClassVar[str] = "ranks"
    items: ClassVar[str] = "images"
    higher_is_better: ClassVar[bool] = True
    k: ClassVar[int] = 1

    def prepare(self, references: object) -> None:
        """Return None: nothing depends on the references alone."""

    def score(self, prepared: None, predictions: Ranks) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each image 1 or 0."""
        hits = (predictions.of_texts < self.k).astype(np.float64)
        return Scores.mean(hits, _certain(self.k, predictions, texts=True))

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Return the share of images or texts found."""
        return mean_of_totals(totals, count)


class TextRecallAt5(TextRecallAt1):
    """Image queries, first five."""

    name: ClassVar[str] = "text_recall_at_5"
    k: ClassVar[int] = 5


class TextRecallAt10(TextRecallAt1):
    """Image queries, first ten."""

    name: ClassVar[str] = "text_recall_at_10"
    k: ClassVar[int] = 10


class ImageRecallAt1(TextRecallAt1):
    """Text queries: is the text's image among the first ``k``?"""

    name: ClassVar[str] = "image_recall_at_1"
    items: ClassVar[str] = "texts"

    def score(self, prepared: None, predictions: Ranks) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each text 1 or 0."""
        hits = (predictions.of_images < self.k).astype(np.float64)
        return Scores.mean(hits, _certain(self.k, predictions, images=True))


class ImageRecallAt5(ImageRecallAt1):
    """Text queries, first five."""

    name: ClassVar[str] = "image_recall_at_5"
    k: ClassVar[int] = 5


class ImageRecallAt10(ImageRecallAt1):
    """Text queries, first ten."""

    name: ClassVar[str] = "image_recall_at_10"
    k: ClassVar[int] = 10


class RecallAt1:
    """Mean of both directions, averaged over ``ks``."""

    name: ClassVar[str] = "recall_at_1"
    needs: ClassVar[str] = "ranks"
    items: ClassVar[str] = "images"
    higher_is_better: ClassVar[bool] = True
    ks: ClassVar[tuple[int, ...]] = (1,)

    def prepare(self, references: object) -> None:
        """Return None: nothing depends on the references alone."""

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


class RecallAt5(RecallAt1):
    """Both directions, first five."""

    name: ClassVar[str] = "recall_at_5"
    ks: ClassVar[tuple[int, ...]] = (5,)


class RecallAt10(RecallAt1):
    """Both directions, first ten."""

    name: ClassVar[str] = "recall_at_10"
    ks: ClassVar[tuple[int, ...]] = (10,)


class RecallMean(RecallAt1):
    """Recall at 1, 5 and 10 combined: the R mean of retrieval papers."""

    name: ClassVar[str] = "recall_mean"
    ks: ClassVar[tuple[int, ...]] = (1, 5, 10)


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
