"""Rank texts for images and images for texts: shortlists, ties and the predictions of a retrieval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.retrieval.scorer import NEVER, Ranks
from mmq_sweeps.tasks.base import Predictions

# Best answers stored per query in a record.
KEPT = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Captions:
    """Texts of a set: their ``ids``, and the index of each text's image ``owner`` ``[T]``.

    ``distinct`` holds the unique wordings, ``wording`` ``[T]`` the index of each text's wording among them.
    """

    ids: list[str]
    owner: NDArray[np.int64]
    distinct: list[str]
    wording: NDArray[np.int64]


def shortlisted(similarity: Floats, count: int) -> NDArray[np.bool_]:
    """Return a mask of the ``count`` largest entries of each row of ``similarity`` ``[A, B]``.

    The first of tied entries wins; entries that are not finite come last.
    """
    order = np.argsort(-np.where(np.isfinite(similarity), similarity, -np.inf), axis=1, kind="stable")[:, :count]
    chosen = np.zeros(similarity.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def ranked(scores: Floats, similarity: Floats, captions: Captions, shortlist: int) -> tuple[Floats, Floats]:
    """Return the scores ``[I, T]`` that rank texts per image, and those ``[I, T]`` that rank images per text.

    On the shortlist they are ``scores`` ``[I, M]``, off it minus infinity. NaN if the similarity, or the score of a
    shortlisted pair, is not finite.
    """
    finite = np.isfinite(similarity)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    places = np.arange(len(captions.owner))

    def listed(on_list: NDArray[np.bool_], by_chance: NDArray[np.bool_]) -> Floats:
        found: Floats = np.where(finite, np.where(on_list, scores, -np.inf), np.nan)[:, captions.wording]
        own = found[captions.owner, places]
        found[captions.owner, places] = np.where(by_chance & ~np.isnan(own), -np.inf, own)
        return found

    of_texts, of_images = _listed_by_chance(np.where(finite, similarity, -np.inf), captions, shortlist)
    return (
        listed(shortlisted(similarity, shortlist), of_texts),
        listed(shortlisted(similarity.T, shortlist).T, of_images),
    )


def _listed_by_chance(
    similarity: Floats, captions: Captions, shortlist: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which right pairs ``[T]`` are on an image's, and on a text's, shortlist only by winning a tie.

    Ties count against the model: ``shortlist`` wrong answers as similar as the right answer push it off.
    """
    of_texts = np.zeros(len(captions.owner), dtype=bool)
    for image, row in enumerate(similarity):
        own = np.flatnonzero(captions.owner == image)
        others = np.delete(row, captions.wording[own])
        of_texts[own] = (others >= row[captions.wording[own], None]).sum(axis=1) >= shortlist
    columns = similarity[:, captions.wording]
    right = columns[captions.owner, np.arange(len(captions.owner))]
    return of_texts, (columns >= right).sum(axis=0) - 1 >= shortlist


def predictions_of(
    images: Sequence[str], captions: Captions, scores: Floats, similarity: Floats, shortlist: int
) -> Predictions:
    """Return the rank and the best answers of each image and text, as JSON, from the pairs' ``scores`` ``[I, M]``."""
    by_image, by_text = ranked(scores, similarity, captions, shortlist)
    ranks = Ranks.of(by_image, captions.owner, by_text)
    found = Predictions()
    for ids, answers, queries, rank in (
        (images, captions.ids, by_image, ranks.of_texts),
        (captions.ids, images, by_text.T, ranks.of_images),
    ):
        for place, identity in enumerate(ids):
            scored = ~np.isnan(queries[place])
            row = np.where(scored, queries[place], -np.inf)
            best = [answers[one] for one in np.argsort(-row, kind="stable")[:KEPT] if row[one] > -np.inf]
            reached = None if rank[place] == NEVER else int(rank[place])
            found[identity] = json.dumps({"rank": reached, "first": best})
            if not scored.all():
                found.not_finite.add(identity)
    return found
