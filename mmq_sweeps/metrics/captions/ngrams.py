"""N-grams of a task's references as arrays, and matching of a cell's captions against them.

References do not change from cell to cell, so their n-grams are counted once. A caption's n-grams are then looked up in
the vocabulary and matched with its own image's rows by one sorted search over all captions.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.base import Floats

Ints = NDArray[np.int64]
ORDERS = 4


def ngrams(sentence: str) -> Counter[str]:
    """Count the 1- to 4-grams of a tokenized sentence, words joined by blanks, in order of first occurrence.

    The order is pycocoevalcap's (``precook``), so that sums over n-grams round as its sums do.
    """
    words = sentence.split()
    grams = list(words)
    longer = words
    for n in range(1, ORDERS):
        longer = [f"{head} {word}" for head, word in zip(longer, words[n:], strict=False)]
        grams += longer
    return Counter(grams)


def word_count(sentence: str) -> int:
    """Count the words of a tokenized sentence."""
    return len(sentence.split())


@dataclass(frozen=True)
class ReferenceNgrams:
    """N-grams of the references of ``N`` images, at most ``R`` per image, over a vocabulary of ``V`` n-grams.

    ``rows`` ``[P]`` are the sorted keys image * V + n-gram of the pairs that occur; ``counts`` ``[P, R]`` are their
    occurrences in each reference. ``lengths`` ``[N, R]`` are in words, -1 if an image has fewer than R references.
    ``cells`` are the nonzero entries of ``counts`` (row * R + reference), sentence by sentence in pycocoevalcap's
    order.
    """

    vocabulary: dict[str, int]
    rows: Ints
    counts: Ints
    lengths: Ints
    cells: Ints

    @staticmethod
    def of(references: Sequence[Sequence[str]]) -> ReferenceNgrams:
        """Count the n-grams of tokenized references ``[N][R_i]``."""
        vocabulary: dict[str, int] = {}
        images: list[int] = []
        ids: list[int] = []
        slots: list[int] = []
        counts: list[int] = []
        lengths = np.full((len(references), max(map(len, references), default=0)), -1, dtype=np.int64)
        for image, sentences in enumerate(references):
            for slot, sentence in enumerate(sentences):
                grams = ngrams(sentence)
                lengths[image, slot] = word_count(sentence)
                ids += [vocabulary.setdefault(gram, len(vocabulary)) for gram in grams]
                counts += grams.values()
                images += [image] * len(grams)
                slots += [slot] * len(grams)
        keys = np.array(images, dtype=np.int64) * len(vocabulary) + np.array(ids, dtype=np.int64)
        rows, inverse = np.unique(keys, return_inverse=True)
        cells = inverse.astype(np.int64) * lengths.shape[1] + np.array(slots, dtype=np.int64)
        table = np.zeros((len(rows), lengths.shape[1]), dtype=np.int64)
        table.ravel()[cells] = counts
        return ReferenceNgrams(vocabulary, rows, table, lengths, cells)

    @functools.cached_property
    def document_frequency(self) -> Ints:
        """Number of images whose references contain each n-gram, ``[V]``."""
        return np.bincount(self.rows % max(1, len(self.vocabulary)), minlength=len(self.vocabulary)).astype(np.int64)

    @functools.cached_property
    def orders(self) -> Ints:
        """Number of words of each n-gram minus 1, ``[V]``."""
        return np.fromiter((gram.count(" ") for gram in self.vocabulary), np.int64, len(self.vocabulary))


@dataclass(frozen=True)
class CandidateNgrams:
    """The ``M`` distinct n-grams of each of ``N`` captions, caption by caption, in pycocoevalcap's order.

    ``ids`` ``[M]`` is -1 for an n-gram in no reference; ``row`` ``[M]`` is its row in the references of its own image,
    or -1. ``lengths`` ``[N]`` are in words.
    """

    captions: Ints
    ids: Ints
    orders: Ints
    counts: Ints
    row: Ints
    lengths: Ints

    @staticmethod
    def of(captions: Sequence[str], references: ReferenceNgrams) -> CandidateNgrams:
        """Match tokenized captions ``[N]``, in the references' order, with the n-grams of their images."""
        counted = [ngrams(caption) for caption in captions]
        sizes = [len(grams) for grams in counted]
        lookup = references.vocabulary.get
        total = sum(sizes)
        ids = _array((lookup(gram, -1) for grams in counted for gram in grams), total)
        image = np.repeat(np.arange(len(counted), dtype=np.int64), sizes)
        return CandidateNgrams(
            captions=image,
            ids=ids,
            orders=_array((gram.count(" ") for grams in counted for gram in grams), total),
            counts=_array(chain.from_iterable(grams.values() for grams in counted), total),
            row=_find(references.rows, image * len(references.vocabulary) + ids, ids >= 0),
            lengths=_array(map(word_count, captions), len(counted)),
        )


def sum_by(keys: Ints, weights: Floats, size: int) -> Floats:
    """Sum ``weights`` by key, each in the order given, so that they round as in a loop."""
    result: Floats = np.bincount(keys, weights, minlength=size).astype(np.float64)
    return result


def _array(values: Iterable[int], size: int) -> Ints:
    return np.fromiter(values, np.int64, size)


def _find(sorted_keys: Ints, wanted: Ints, known: NDArray[np.bool_]) -> Ints:
    if not len(sorted_keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    found: Ints = np.where(known & (sorted_keys[place] == wanted), place, -1)
    return found
