"""CIDEr as pycocoevalcap 1.2 computes it (Vedantam et al., arXiv 1411.5726).

Its only class is called CIDEr and computes the paper's CIDEr-D, without stemming: the cosine of tf-idf vectors of 1- to
4-grams, the caption's clipped to the reference's, times exp(-d²/2σ²) with σ = 6, averaged over references and n, times
ten. d is the difference in bigrams, which is the difference in words unless a sentence is empty. ``cider`` and
``cider_d`` are therefore the same figure under its two published names.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Floats, MetricBase, Scores
from mmq_sweeps.metrics.captions.ngrams import ORDERS, Ints, ReferenceNgrams, sum_by
from mmq_sweeps.metrics.captions.references import Candidates, References

SIGMA = 6.0


@dataclass(frozen=True)
class CiderReferences:
    """Tf-idf vectors of a task's references: ``weights`` ``[P, R]`` by row of ``ngrams``, ``norms`` ``[N, R, 4]``."""

    ngrams: ReferenceNgrams
    log_images: float
    idf: Floats
    weights: Floats
    norms: Floats


class Cider(MetricBase):
    """pycocoevalcap's ``Cider``, equal to the last bit: every sum is taken in its order."""

    name: ClassVar[str] = "cider"
    needs: ClassVar[str] = "captions"

    def prepare(self, references: References) -> CiderReferences:
        """Compute weights and norms of the references."""
        grams = references.ngrams
        images = len(grams.lengths)
        log_images = float(np.log(float(images))) if images else 0.0
        idf = log_images - _logarithms(grams.document_frequency)
        size = max(1, len(grams.vocabulary))
        weights: Floats = grams.counts * idf[grams.rows % size, None]
        return CiderReferences(grams, log_images, idf, weights, _norms(grams, weights))

    def score(self, prepared: CiderReferences, predictions: Candidates) -> Scores:
        """Score tokenized captions in the order of the images."""
        found = predictions.ngrams
        bins, size = found.captions * ORDERS + found.orders, len(predictions.tokens) * ORDERS
        known = found.ids >= 0
        idf = np.full(len(found.ids), prepared.log_images)
        idf[known] = prepared.idf[found.ids[known]]
        weights = found.counts * idf
        norms = np.sqrt(sum_by(bins, _squares(weights), size)).reshape(-1, ORDERS)
        shared = found.row >= 0
        totals = np.zeros((len(predictions.tokens), ORDERS))
        for slot in range(prepared.ngrams.lengths.shape[1]):
            theirs = prepared.weights[found.row[shared], slot]
            products = np.minimum(weights[shared], theirs) * theirs
            similarity = sum_by(bins[shared], products, size).reshape(-1, ORDERS)
            scale = norms * prepared.norms[:, slot]
            np.divide(similarity, scale, out=similarity, where=scale != 0)
            totals += similarity * _length_penalty(found.lengths, prepared.ngrams.lengths[:, slot])[:, None]
        references = (prepared.ngrams.lengths >= 0).sum(axis=1)
        return Scores.mean(totals.mean(axis=1) / references * 10.0, _weightless(prepared))


def _weightless(prepared: CiderReferences) -> tuple[str, ...]:
    """Warn about images that score 0 for every caption: every n-gram of their references occurs at all images."""
    none = int((~prepared.norms.any(axis=(1, 2))).sum())
    if not none:
        return ()
    images = len(prepared.norms)
    if images == 1:
        return ("CIDEr of one image is 0 whatever the caption",)
    shown = f"all {images}" if none == images else f"{none} of {images}"
    return (f"CIDEr of {shown} images is 0 whatever the caption: their references have no words of their own",)


class CiderD(Cider):
    """The same figure under the paper's name."""

    name: ClassVar[str] = "cider_d"


def _norms(grams: ReferenceNgrams, weights: Floats) -> Floats:
    images, slots = grams.lengths.shape
    row, slot = grams.cells // max(1, slots), grams.cells % max(1, slots)
    image, gram = np.divmod(grams.rows[row], max(1, len(grams.vocabulary)))
    bins = (image * slots + slot) * ORDERS + grams.orders[gram]
    sums = sum_by(bins, _squares(weights[row, slot]), images * slots * ORDERS)
    norms: Floats = np.sqrt(sums).reshape(images, slots, ORDERS)
    return norms


def _squares(values: Floats) -> Floats:
    squares: Floats = values * values
    return squares


def _logarithms(frequency: Ints) -> Floats:
    distinct, inverse = np.unique(frequency, return_inverse=True)
    logarithms: Floats = np.array([float(np.log(max(1.0, float(value)))) for value in distinct])[inverse]
    return logarithms


def _length_penalty(candidate: Ints, reference: Ints) -> Floats:
    delta = np.maximum(candidate - 1, 0) - np.maximum(reference - 1, 0)
    penalty: Floats = np.array([_gaussian(float(value)) for value in delta])
    return penalty


@functools.cache
def _gaussian(delta: float) -> float:
    return math.e ** (-(delta**2) / (2 * SIGMA**2))
