"""Image captioning: one caption an image, scored against several references."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmq_sweeps.build import find_class
from mmq_sweeps.metrics import CaptionScorer, MetricResult
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.base import Progress


@dataclass(frozen=True, eq=False)
class CaptionTask:
    """Captions of the first ``limit`` items of ``split``; calibration samples are drawn from ``calibration_split``.

    ``data`` is a reader: ``_target_`` and fields of a dataclass that also takes ``split`` and ``count``, and is a sequence
    of examples with ``id``, ``image`` and ``references``. ``generation`` goes to the model's ``generate``.
    """

    name: str
    version: int
    data: dict[str, Any]
    split: str
    calibration_split: str
    limit: int
    prompt: str
    generation: dict[str, Any]
    metrics: list[str]
    batch_size: int

    @cached_property
    def examples(self) -> Sequence[Any]:
        return self._read(self.split, self.limit)

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        self._scorer(cache)
        evaluated = {_image_digest(example.image): example.id for example in self.examples}
        ids = set(evaluated.values())
        for calibration in calibrations:
            shared = [
                sample.id
                for sample in self._calibration_examples(calibration)
                if sample.id in ids or _image_digest(sample.image) in evaluated
            ]
            if shared:
                shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
                raise ValueError(
                    f"task.calibration_split={self.calibration_split}: {len(shared)} calibration samples are also "
                    f"evaluated in task.split={self.split} ({shown}); choose a split apart from it"
                )

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
        """Images with the prompt and their first reference, as in teacher forcing."""
        samples = self._calibration_examples(calibration)
        for start in range(0, len(samples), calibration["batch_size"]):
            batch = samples[start : start + calibration["batch_size"]]
            texts = [f"{self.prompt}{example.references[0]}" for example in batch]
            yield dict(
                loaded.processor(
                    images=[example.image for example in batch], text=texts, return_tensors="pt", padding=True
                )
            )

    @torch.no_grad()
    def predict(self, loaded: LoadedModel, progress: Progress) -> dict[str, str]:
        predictions: dict[str, str] = {}
        for start in range(0, len(self.examples), self.batch_size):
            batch = [self.examples[i] for i in range(start, min(start + self.batch_size, len(self.examples)))]
            inputs = loaded.processor(
                images=[example.image for example in batch],
                text=[self.prompt] * len(batch),
                return_tensors="pt",
                padding=True,
            )
            inputs = loaded.to_device(inputs)
            tokens = loaded.model.generate(**inputs, **self.generation)
            captions = loaded.processor.batch_decode(_answers(tokens, inputs["input_ids"]), skip_special_tokens=True)
            predictions |= {example.id: caption.strip() for example, caption in zip(batch, captions, strict=True)}
            progress(len(predictions), len(self.examples))
        return predictions

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        return self._scorer(cache).score(predictions)

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        shown = [self.examples[i] for i in range(min(count, len(self.examples)))]
        return [(example.id, example.image, list(example.references)) for example in shown]

    @lru_cache(maxsize=1)  # noqa: B019 - a task lives as long as its process
    def _scorer(self, cache: Path) -> CaptionScorer:
        references = {example.id: list(example.references) for example in self.examples}
        return CaptionScorer(references, metrics=sorted(set(self.metrics)), cache_dir=cache)

    def _calibration_examples(self, calibration: Mapping[str, Any]) -> list[Any]:
        return list(self._read(self.calibration_split, calibration["samples"], calibration["seed"]))

    def _read(self, split: str, count: int, seed: int | None = None) -> Sequence[Any]:
        fields = {name: value for name, value in self.data.items() if name != "_target_"}
        if seed is not None:
            fields["seed"] = seed
        examples = find_class("task.data._target_", self.data["_target_"])(split=split, count=count, **fields)
        if len(examples) < count:
            raise ValueError(f"{count} items of {split} asked for, {len(examples)} are there")
        return list(examples)


def _answers(tokens: Tensor, prompt: Tensor) -> Tensor:
    """What was generated: some releases of transformers return the prompt in front of it, some do not."""
    length = prompt.shape[1]
    if tokens.shape[1] >= length and bool((tokens[:, :length] == prompt).all()):
        return tokens[:, length:]
    return tokens


def _image_digest(image: Any) -> str:
    return hashlib.sha256(f"{image.size}{image.mode}".encode() + image.tobytes()).hexdigest()
