"""Retrieval of texts by image and of images by text: a shortlist by features, ranked again by the matching head.

As LAVIS evaluates BLIP-2 (arXiv 2301.12597; ``compute_sim_matrix`` in its ``blip2.py``): the similarity of a pair is the
largest cosine of the image's query features with the text's feature; the ``shortlist`` most similar of each query are
ranked by matching logit plus that cosine; all others come after them. A pair that both directions ask for is scored
once, an image is encoded once, and equal texts are one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmq_sweeps.metrics import MetricResult, RetrievalScorer
from mmq_sweeps.metrics.ranks import Ranks
from mmq_sweeps.models import check
from mmq_sweeps.models.check import Asked, Asking
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.retriever import Retriever, Texts
from mmq_sweeps.tasks.base import Progress
from mmq_sweeps.tasks.examples import Examples, Prepared, decoded, split_up

# How many of the best answers a record keeps of each query.
KEPT = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Captions:
    """The texts of a set: ``ids`` and the index of each one's image ``owner`` ``[T]``; ``distinct`` wordings, and which
    of them each text has ``[T]``."""

    ids: list[str]
    owner: NDArray[np.int64]
    distinct: list[str]
    wording: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RetrievalTask:
    """The first ``limit`` images of ``split``, or all with null, and all of their texts; the reader as for captions.

    ``dropped_marks`` become blanks before a text is tokenized and cut after ``text_length`` tokens. ``shortlist`` counts
    the texts (the images) that are ranked again for each image (text).
    """

    name: str
    version: int
    data: dict[str, Any]
    split: str
    calibration_split: str
    limit: int | None
    shortlist: int
    text_length: int
    dropped_marks: str
    metrics: list[str]
    batch_size: int
    pair_batch_size: int
    model_classes: list[str]
    allow_missing: bool = False

    def __post_init__(self) -> None:
        for key in ("shortlist", "text_length", "pair_batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: choose a whole number above 0")

    @cached_property
    def examples(self) -> Examples:
        return Examples(self.data, self.split, self.calibration_split, self.allow_missing)

    @cached_property
    def _prepared(self) -> Prepared[Tensor]:
        return Prepared()

    @property
    def images(self) -> list[Any]:
        """The evaluated examples."""
        return self.examples.usable(self._asked)

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        self._scorer(tuple(example.id for example in self._asked))
        if self.shortlist > len(self._asked):
            raise ValueError(
                f"task.shortlist={self.shortlist}: there are {len(self._asked)} images to choose from; "
                f"choose 1 to {len(self._asked)}"
            )
        self.examples.check(self._asked, calibrations, cache)

    def check_model(self, loaded: LoadedModel) -> Iterator[str]:
        """Ask about the first image and the longest text: for a pair's similarities, then for its matching logit."""
        retriever = Retriever(loaded, self.text_length)

        def prepare(asked: Sequence[Asked]) -> dict[str, Any]:
            texts = retriever.tokenized([one.text for one in asked])
            pixels = retriever.pixels([one.image for one in asked])
            return {"pixel_values": pixels, "input_ids": texts.tokens, "attention_mask": texts.mask}

        def similar(inputs: Mapping[str, Any]) -> Tensor:
            _, looks = retriever.encode_images(inputs["pixel_values"])
            return torch.einsum("bqd,bd->bq", looks, retriever.encode_texts(texts_of(inputs)))

        def matching(inputs: Mapping[str, Any]) -> Tensor:
            seen, _ = retriever.encode_images(inputs["pixel_values"])
            texts = texts_of(inputs)
            return torch.stack([retriever.match(vision, texts[row : row + 1]) for row, vision in enumerate(seen)])

        def texts_of(inputs: Mapping[str, Any]) -> Texts:
            return Texts(inputs["input_ids"], inputs["attention_mask"])

        images = self.images
        said = [(example, self._cleaned(text)) for example in images for text in example.references]
        (example, text), (owner, longest) = said[0], max(said, key=lambda pair: len(pair[1]))
        other = next((one for one in [owner, *images] if one is not example), owner)
        for answer in (similar, matching):
            found = list(
                check.problems(
                    Asking(loaded, prepare, answer, prompted=False, batched=True),
                    Asked(example.id, example.image, text),
                    Asked(other.id, other.image, longest),
                    "",
                    ((one.id, text) for one, text in said),
                )
            )
            yield from found
            if found:
                return

    def notes(self) -> dict[str, Any]:
        missing = self.examples.missing(self._asked)
        return {"missing": missing | {"items": missing["images"]}} if missing else {}

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every image with one of its texts, for the features; then again for the matching head.

        There, every second text is the next image's, since most pairs that the head sees are of images and texts that do
        not belong together.
        """
        retriever = Retriever(loaded, self.text_length)
        samples = self.examples.drawn(calibration)
        said = [example.references[place % len(example.references)] for place, example in enumerate(samples)]
        texts = retriever.tokenized(list(map(self._cleaned, said)))
        for own in _batches(len(samples), calibration["batch_size"]):
            pixels = retriever.pixels([samples[row].image for row in own.tolist()])
            mixed = torch.where(torch.arange(len(own)) % 2 == 1, own.roll(-1), own)
            yield retriever.forward_inputs(pixels, texts[own], matching=False)
            yield retriever.forward_inputs(pixels, texts[mixed], matching=True)

    @torch.no_grad()
    def predict(self, loaded: LoadedModel, progress: Progress) -> dict[str, str]:
        """Of each image and each text: the rank of its first right answer, from 0, and the ids of the ``KEPT`` first."""
        images, captions = self.images, self._captions
        retriever = Retriever(loaded, self.text_length)
        texts = retriever.tokenized(captions.distinct)
        told = _Steps(progress, len(texts) + 2 * len(images))
        features = torch.cat(
            [told(retriever.encode_texts(texts[rows]), len(rows)) for rows in _batches(len(texts), self.batch_size)]
        )
        seen, similarity = self._encoded(retriever, images, features, told)
        wanted = shortlisted(similarity, self.shortlist) | shortlisted(similarity.T, self.shortlist).T
        matching = np.full_like(similarity, -np.inf)
        for image, vision in enumerate(seen):
            columns = np.flatnonzero(wanted[image])
            matching[image, columns] = self._matched(retriever, vision.to(loaded.device), texts, columns)
            told(None, 1)
        return _predictions(
            [example.id for example in images], captions, matching + similarity, similarity, self.shortlist
        )

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:  # noqa: ARG002
        """Every metric of the ranks in ``predictions``."""
        scorer = self._scorer(tuple(example.id for example in self.images))

        def ranks(ids: Sequence[str]) -> NDArray[np.int64]:
            return np.array([json.loads(predictions[one])["rank"] for one in ids], dtype=np.int64)

        return scorer.score_ranks(Ranks(ranks(scorer.image_ids), ranks(scorer.text_ids), self._captions.owner))

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        return [(example.id, example.image, list(example.references)) for example in self.images[:count]]

    @cached_property
    def _asked(self) -> list[Any]:
        found = list(self.examples.first(self.limit))
        if self.limit is not None and len(found) < self.limit:
            raise ValueError(f"task.limit={self.limit}: {self.split} has {len(found)} images to evaluate")
        return found[: self.limit]

    @property
    def _captions(self) -> Captions:
        ids: list[str] = []
        owner: list[int] = []
        texts: list[str] = []
        for place, example in enumerate(self.images):
            ids += _text_ids(example)
            owner += [place] * len(example.references)
            texts += map(self._cleaned, example.references)
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return Captions(ids, np.array(owner), list(places), np.array([places[text] for text in texts]))

    @lru_cache(maxsize=2)  # noqa: B019 - a task lives as long as its process
    def _scorer(self, images: tuple[str, ...]) -> RetrievalScorer:
        wanted = set(images)
        texts = {example.id: _text_ids(example) for example in self._asked if example.id in wanted}
        return RetrievalScorer(texts, self.metrics)

    @cached_property
    def _blanks(self) -> dict[int, str]:
        return {ord(mark): " " for mark in self.dropped_marks}

    def _cleaned(self, text: str) -> str:
        return " ".join(text.translate(self._blanks).split())

    def _encoded(
        self, retriever: Retriever, images: Sequence[Any], features: Tensor, told: _Steps
    ) -> tuple[list[Tensor], Floats]:
        """The vision output of each image, on the CPU, and the similarities ``[I, M]`` of images and distinct texts."""
        seen: list[Tensor] = []
        rows = []
        batches = split_up(images, self.batch_size)
        for batch, pixels in self._prepared(
            retriever.loaded.processor, batches, lambda batch: retriever.pixels(decoded(batch))
        ):
            vision, looks = retriever.encode_images(pixels)
            seen += vision.cpu()
            rows += [(look @ features.T).amax(dim=0).double().cpu().numpy() for look in looks]
            told(None, len(batch))
        return seen, np.stack(rows)

    def _matched(self, retriever: Retriever, vision: Tensor, texts: Texts, columns: NDArray[np.int64]) -> Floats:
        # Texts of like length together, so that little padding is computed.
        order = torch.from_numpy(columns[np.argsort(texts.mask[columns].sum(dim=1).numpy(), kind="stable")])
        parts = [retriever.match(vision, texts[part]) for part in order.split(self.pair_batch_size)]
        scores = torch.zeros(len(texts), dtype=torch.float64)
        scores[order] = torch.cat(parts).double().cpu()
        found: Floats = scores[columns].numpy()
        return found


class _Steps:
    """Tells ``progress`` of work as it is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, result: Any, steps: int) -> Any:
        self._done += steps
        self._progress(self._done, self._total)
        return result


def shortlisted(similarity: Floats, count: int) -> NDArray[np.bool_]:
    """Of each row of ``similarity`` ``[A, B]`` the ``count`` largest, the first where several tie; a NaN is the smallest."""
    order = np.argsort(-np.where(np.isnan(similarity), -np.inf, similarity), axis=1, kind="stable")[:, :count]
    chosen = np.zeros(similarity.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def ranked(scores: Floats, similarity: Floats, captions: Captions, shortlist: int) -> tuple[Floats, Floats]:
    """What images ``[I, T]`` and what texts ``[I, T]`` rank by: ``scores`` ``[I, M]`` on the shortlist."""
    by_image = np.where(shortlisted(similarity, shortlist), scores, -np.inf)[:, captions.wording]
    by_text = np.where(shortlisted(similarity.T, shortlist).T, scores, -np.inf)[:, captions.wording]
    return by_image, by_text


def _predictions(
    images: Sequence[str], captions: Captions, scores: Floats, similarity: Floats, shortlist: int
) -> dict[str, str]:
    by_image, by_text = ranked(scores, similarity, captions, shortlist)
    ranks = Ranks.of(by_image, captions.owner, by_text)
    found = {}
    for ids, answers, queries, rank in (
        (images, captions.ids, by_image, ranks.of_texts),
        (captions.ids, images, by_text.T, ranks.of_images),
    ):
        for place, identity in enumerate(ids):
            row = np.where(np.isnan(queries[place]), -np.inf, queries[place])
            best = [answers[one] for one in np.argsort(-row, kind="stable")[:KEPT] if row[one] > -np.inf]
            found[identity] = json.dumps({"rank": int(rank[place]), "first": best})
    return found


def _text_ids(example: Any) -> list[str]:
    return [f"{example.id}/{number}" for number in range(len(example.references))]


def _batches(total: int, size: int) -> list[Tensor]:
    return list(torch.arange(total).split(size))
