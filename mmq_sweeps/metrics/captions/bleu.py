"""BLEU-1 to BLEU-4 as pycocoevalcap 1.2 computes them (Papineni et al., ACL 2002), closest reference length.

The figure of a cell is corpus BLEU: matches, n-grams and lengths are first summed over all images. The per-image scores
are pycocoevalcap's: BLEU of a single image with its smoothing constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, MetricBase, Scores
from mmq_sweeps.metrics.captions.ngrams import ORDERS, CandidateNgrams, Ints, ReferenceNgrams, sum_by
from mmq_sweeps.metrics.captions.references import Candidates, References

_SMALL, _TINY = 1e-9, 1e-15


class Bleu(MetricBase):
    """BLEU-n for n = ``order``."""

    needs: ClassVar[str] = "captions"

    def __init__(self, order: int) -> None:
        self.name, self.order = f"bleu_{order}", order

    def prepare(self, references: References) -> ReferenceNgrams:
        """Return the references' n-grams unchanged."""
        return references.ngrams

    def score(self, prepared: ReferenceNgrams, predictions: Candidates) -> Scores:
        """Score tokenized captions in the order of the images."""
        totals = bleu_statistics(predictions.ngrams, prepared)
        per_item = np.array([_bleu(row, self.order) for row in totals.tolist()])
        value = _bleu(totals.sum(axis=0).tolist(), self.order)
        return Scores(value, per_item, totals, self._warnings(totals))

    def _warnings(self, totals: Floats) -> tuple[str, ...]:
        """Warn if no caption has ``order`` words: the figure then comes from the smoothing constants."""
        if totals[:, ORDERS + self.order - 1].any() or not totals[:, 2 * ORDERS].any():
            return ()
        return (f"no caption has {self.order} words, so BLEU-{self.order} compares nothing",)

    def aggregate(self, totals: Floats, count: Count) -> Floats:  # noqa: ARG002 (part of a metric)
        """Compute BLEU of summed statistics."""
        return np.array([_bleu(row, self.order) for row in totals.tolist()])


Bleu1, Bleu2, Bleu3, Bleu4 = (partial(Bleu, order) for order in range(1, ORDERS + 1))


def bleu_statistics(candidates: CandidateNgrams, references: ReferenceNgrams) -> Floats:
    """Return ``[N, 10]``: matched n-grams for n = 1..4, n-grams for n = 1..4, words, words of the closest reference."""
    matched = candidates.row >= 0
    most = references.counts.max(axis=1, initial=0)[candidates.row[matched]]
    clipped = np.minimum(candidates.counts[matched], most).astype(np.float64)
    bins = (candidates.captions * ORDERS + candidates.orders)[matched]
    correct = sum_by(bins, clipped, len(candidates.lengths) * ORDERS).reshape(-1, ORDERS)
    lengths = candidates.lengths[:, None]
    guesses = np.maximum(0, lengths - np.arange(ORDERS))
    closest = _closest(candidates.lengths, references.lengths)
    return np.concatenate([correct, guesses, lengths, closest[:, None]], axis=1).astype(np.float64)


def _closest(lengths: Ints, references: Ints) -> Ints:
    """Return the reference length nearest to each caption's; the shorter wins a tie."""
    far = np.iinfo(np.int64).max // 4
    key = np.where(references >= 0, np.abs(references - lengths[:, None]) * 2**31 + references, far)
    closest: Ints = np.take_along_axis(references, key.argmin(axis=1)[:, None], axis=1)[:, 0]
    return closest


def _bleu(row: Sequence[float], order: int) -> float:
    """Compute pycocoevalcap's formula, operation by operation."""
    product = 1.0
    for n in range(order):
        product *= (row[n] + _TINY) / (row[ORDERS + n] + _SMALL)
    words, closest = row[2 * ORDERS], row[2 * ORDERS + 1]
    ratio = (words + _TINY) / (closest + _SMALL)
    score = product ** (1.0 / order)
    return score * math.exp(1 - 1 / ratio) if ratio < 1 else score
