"""Text and image retrieval: a shortlist by feature similarity, reranked by the matching head.

Follows LAVIS's evaluation of BLIP-2 (arXiv 2301.12597; ``compute_sim_matrix`` in its ``blip2.py``). The similarity of a
pair is the largest cosine between the image's query features and the text's feature. Each query's ``shortlist`` most
similar candidates are ranked by matching logit plus that cosine, ahead of all others. Each image and each distinct text
is encoded once, and a pair on both directions' shortlists is scored once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmq_sweeps.data.images import image_count
from mmq_sweeps.identity.roles import EVALUATION, LABEL
from mmq_sweeps.metrics import MetricResult, RetrievalScorer
from mmq_sweeps.metrics.captions.scorer import check_items
from mmq_sweeps.metrics.degenerate import alike, of_first, of_left_out, of_scores
from mmq_sweeps.metrics.retrieval.scorer import NEVER, Ranks
from mmq_sweeps.models import model_check
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.model_check import Asked, Asking
from mmq_sweeps.models.retriever import Retriever, Texts
from mmq_sweeps.tasks.base import Predictions, Progress
from mmq_sweeps.tasks.examples import Examples, Prepared, decoded, split_up
from mmq_sweeps.tasks.items import bad_texts, check_ids, describe_bad, left_out_for, problem_of_references
from mmq_sweeps.tasks.ranking import Captions, Floats, predictions_of, shortlisted
from mmq_sweeps.tasks.sample import drawn


@dataclass(frozen=True, eq=False)
class RetrievalTask:
    """Retrieval over the first ``limit`` images of ``split`` (null: all) and all their texts.

    The reader is as for captions. ``dropped_marks`` become blanks before a text is tokenized and cut to ``text_length``
    tokens. ``shortlist`` is the number of texts reranked per image, and of images per text. ``sample``
    (``config/sample.py``) chooses the images that are asked, with their texts; answers are chosen from all.
    """

    name: str = field(metadata=LABEL)
    version: int
    data: dict[str, Any]
    split: str = field(metadata=EVALUATION)
    calibration_split: str
    limit: int | None = field(metadata=EVALUATION)
    shortlist: int = field(metadata=EVALUATION)
    text_length: int
    dropped_marks: str
    metrics: list[str] = field(metadata=EVALUATION)
    batch_size: int = field(metadata=LABEL)
    pair_batch_size: int = field(metadata=LABEL)
    model_classes: list[str] = field(metadata=LABEL)
    allow_missing: bool = field(default=False, metadata=EVALUATION)
    sample: dict[str, Any] | None = field(default=None, metadata=EVALUATION)

    known_as: ClassVar[str] = "retrieval"

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
        """Evaluated examples."""
        bad = self._bad
        return [example for example in self.examples.usable(self._asked) if example.id not in bad]

    @property
    def queries(self) -> list[Any]:
        """Evaluated examples that are asked, with their texts; with a ``sample``, some of them."""
        chosen = {id(example) for example in drawn(self._asked, self.sample, self.split)}
        return [example for example in self.images if id(example) in chosen]

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        if self._bad:
            told = f"task.split={self.split}: {describe_bad(self._bad, len(self._asked))}"
            if len(self._bad) == len(self._asked):
                raise ValueError(f"{told}. None is left")
            if not self.allow_missing:
                raise ValueError(
                    f"{told}. Mend the annotations, or set task.allow_missing=true to go without them, which every record "
                    "says"
                )
        self._scorer(tuple(example.id for example in self._asked if example.id not in self._bad))
        if self.shortlist > len(self._asked):
            raise ValueError(
                f"task.shortlist={self.shortlist}: there are {len(self._asked)} images to choose from; "
                f"choose 1 to {len(self._asked)}"
            )
        self.examples.check(self._asked, calibrations, cache, self._check_samples)
        if not self.queries:
            raise ValueError(f"task.split={self.split}: no image is left that can be used together with its texts")

    def check_model(self, loaded: LoadedModel) -> Iterator[str]:
        """Ask about the first image and the longest text: a pair's similarities, then its matching logit."""
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
                model_check.problems(
                    Asking(loaded, prepare, answer, prompted=False, batched=True),
                    Asked(example.id, [example.image], text),
                    Asked(other.id, [other.image], longest),
                    "",
                    ((one.id, text) for one, text in said),
                )
            )
            yield from found
            if found:
                return

    def notes(self) -> dict[str, Any]:
        missing = self.examples.missing(self._asked) | bad_texts(self._bad)
        return {"missing": missing | {"items": len(self._asked) - len(self.images)}} if missing else {}

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield each batch of images, with one text per image, twice: for the features, then for the matching head.

        For the matching head, every second text is the next image's, since most pairs that it sees do not belong
        together.
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
    def predict(self, loaded: LoadedModel, progress: Progress) -> Predictions:
        """Return a rank and the best answers for each image and each text, as JSON.

        ``rank`` is that of the first right answer, from 0, or null if no right answer has a finite score; ``first``
        holds the ids of the ``KEPT`` best answers.
        """
        images, captions = self.images, self._captions
        retriever = Retriever(loaded, self.text_length)
        texts = retriever.tokenized(captions.distinct)
        told = _Steps(progress, len(texts) + 2 * len(images))
        features = torch.cat(
            [told(retriever.encode_texts(texts[rows]), len(rows)) for rows in _batches(len(texts), self.batch_size)]
        )
        seen, similarity = self._encoded(retriever, images, features, told)
        wanted = shortlisted(similarity, self.shortlist) | shortlisted(similarity.T, self.shortlist).T
        if self.sample is not None:
            wanted &= self._asked_pairs(images, captions)
        matching = np.full_like(similarity, -np.inf)
        for image, vision in enumerate(seen):
            columns = np.flatnonzero(wanted[image])
            # With a sample, an image may be asked nothing.
            if len(columns):
                matching[image, columns] = self._matched(retriever, vision.to(loaded.device), texts, columns)
            told(None, 1)
        found = predictions_of(
            [example.id for example in images], captions, matching + similarity, similarity, self.shortlist
        )
        return found if self.sample is None else self._of_sample(found)

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:  # noqa: ARG002
        """Return every metric of the ranks in ``predictions``.

        Raises ValueError if ranks are missing or belong to other images or texts.
        """
        scorer = self._scorer(tuple(example.id for example in self.queries))
        check_items((*scorer.image_ids, *scorer.text_ids), predictions, "rank")

        def ranks(ids: Sequence[str]) -> NDArray[np.int64]:
            found = [json.loads(predictions[one])["rank"] for one in ids]
            return np.array([NEVER if rank is None else rank for rank in found], dtype=np.int64)

        wrong = getattr(predictions, "not_finite", ())
        of_images, of_texts = _firsts(scorer.image_ids, predictions), _firsts(scorer.text_ids, predictions)
        # Of an image, a text of each image is the right answer, named like that.
        owners = [scorer.image_ids[place] for place in scorer.owner]
        both = [alike(of_images, scorer.image_ids), alike(of_texts, owners)]
        repeated = max((one for one in both if one), key=lambda one: (one.identical, one.empty), default=None)
        warnings = (
            *of_scores([one in wrong for one in scorer.image_ids], [one in wrong for one in scorer.text_ids]),
            *of_left_out(len(self._asked) - len(self.images), len(self._asked), left_out_for(self.notes())),
            *self._doubtful_items(),
            *of_first("images", "text", of_images, scorer.image_ids),
            *of_first("texts", "image", of_texts, owners),
            *self.examples.remarks(self.images),
        )
        found = scorer.score_ranks(Ranks(ranks(scorer.image_ids), ranks(scorer.text_ids), scorer.owner))
        return {name: replace(result, alike=repeated).warned(*warnings) for name, result in found.items()}

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        return [(example.id, example.image, list(example.references)) for example in self.images[:count]]

    @cached_property
    def _asked(self) -> list[Any]:
        found = list(self.examples.first(self.limit, (self.sample or {}).get("apart_from")))
        if self.limit is not None and len(found) < self.limit:
            raise ValueError(f"task.limit={self.limit}: {self.split} has {len(found)} images to evaluate")
        asked = found[: self.limit]
        check_ids(self.split, [(one, example) for example in asked for one in (example.id, *_text_ids(example))])
        return asked

    @cached_property
    def _bad(self) -> dict[str, str]:
        """Reasons why an image's texts cannot be ranked, by image id."""
        return _bad_texts_of(self._asked)

    def _check_samples(self, examples: Sequence[Any]) -> None:
        if bad := _bad_texts_of(examples):
            raise ValueError(f"task.calibration_split={self.calibration_split}: {describe_bad(bad, len(examples))}")

    def _doubtful_items(self) -> tuple[str, ...]:
        """Warn about empty texts, and about texts or images that occur several times: a tie counts against the model."""
        captions = self._captions
        pairs = {
            (wording, owner) for wording, owner in zip(captions.wording.tolist(), captions.owner.tolist(), strict=True)
        }
        holders = Counter(wording for wording, _ in pairs)
        shared = sum(1 for wording in captions.wording.tolist() if holders[wording] > 1)
        empty = sum(1 for wording in captions.wording.tolist() if not captions.distinct[wording])
        counts = ((shared, "equal to a text of another image and tie with it"), (empty, "empty"))
        told = [f"{count} of {len(captions.ids)} texts are {what}" for count, what in counts if count]
        images = self.images
        if same := self.examples.alike(images):
            told.append(f"{same} of {len(images)} images have the contents of another one and tie with it")
        return tuple(told)

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

    def _asked_pairs(self, images: Sequence[Any], captions: Captions) -> NDArray[np.bool_]:
        """Return which pairs of image and wording ``[I, M]`` answer an image or a text of the sample."""
        asked = {example.id for example in self.queries}
        rows = np.array([example.id in asked for example in images])
        columns = np.zeros(len(captions.distinct), dtype=bool)
        columns[captions.wording[rows[captions.owner]]] = True
        return rows[:, None] | columns[None, :]

    def _of_sample(self, predictions: Predictions) -> Predictions:
        asked = [one for example in self.queries for one in (example.id, *_text_ids(example))]
        found = Predictions({one: predictions[one] for one in asked})
        found.not_finite = predictions.not_finite & set(asked)
        return found

    def _encoded(
        self, retriever: Retriever, images: Sequence[Any], features: Tensor, told: _Steps
    ) -> tuple[list[Tensor], Floats]:
        """Return each image's vision output, on the CPU, and the similarities ``[I, M]`` to distinct texts."""
        seen: list[Tensor] = []
        rows = []
        batches = split_up(images, self.batch_size)
        for batch, pixels in self._prepared(
            retriever.loaded.processor, batches, lambda batch: retriever.pixels([image for (image,) in decoded(batch)])
        ):
            vision, looks = retriever.encode_images(pixels)
            seen += vision.cpu()
            rows += [(look @ features.T).amax(dim=0).double().cpu().numpy() for look in looks]
            told(None, len(batch))
        return seen, np.stack(rows)

    def _matched(self, retriever: Retriever, vision: Tensor, texts: Texts, columns: NDArray[np.int64]) -> Floats:
        # Batch texts of similar length, so that little padding is computed.
        order = torch.from_numpy(columns[np.argsort(texts.mask[columns].sum(dim=1).numpy(), kind="stable")])
        parts = [retriever.match(vision, texts[part]) for part in order.split(self.pair_batch_size)]
        scores = torch.zeros(len(texts), dtype=torch.float64)
        scores[order] = torch.cat(parts).double().cpu()
        found: Floats = scores[columns].numpy()
        return found


class _Steps:
    """Counter that reports finished work to ``progress``."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, result: Any, steps: int) -> Any:
        self._done += steps
        self._progress(self._done, self._total)
        return result


def _firsts(ids: Sequence[str], predictions: Mapping[str, str]) -> list[str]:
    """Return the first answer of each image or text, empty if none: mostly the same if a model scores all alike."""
    return [next(iter(json.loads(predictions[one]).get("first", ())), "") for one in ids]


def _bad_texts_of(examples: Sequence[Any]) -> dict[str, str]:
    found = (
        (example.id, _problem_of_images(example) or problem_of_references(example.references)) for example in examples
    )
    return {identity: problem for identity, problem in found if problem is not None}


def _problem_of_images(example: Any) -> str | None:
    count = image_count(example)
    return None if count == 1 else f"it has {count or 'no'} images, and texts are ranked for one"


def _text_ids(example: Any) -> list[str]:
    return [f"{example.id}/{number}" for number in range(len(example.references))]


def _batches(total: int, size: int) -> list[Tensor]:
    return list(torch.arange(total).split(size))
