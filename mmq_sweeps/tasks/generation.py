"""What captioning and answering share: images with prompts in, generated text out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmq_sweeps.build import find_class
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.base import Progress


@dataclass(frozen=True)
class Item:
    """One text asked for: an image with a prompt, the texts that are right, and the kind of item (may be empty)."""

    id: str
    image: Any
    prompt: str
    references: tuple[str, ...]
    kind: str = ""


class Scorer(Protocol):
    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]: ...


@dataclass(frozen=True, eq=False)
class GenerationTask(ABC):
    """The first ``limit`` items of ``split``; calibration samples are drawn from ``calibration_split``.

    ``data`` is a reader: ``_target_`` and fields of a dataclass that also takes ``split`` and ``count``, and is a
    sequence of examples. ``generation`` goes to the model's ``generate``.
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

    @abstractmethod
    def items_of(self, example: Any) -> list[Item]:
        """The items of one example of the reader; at least one."""

    @abstractmethod
    def make_scorer(self, items: Sequence[Item], cache: Path) -> Scorer:
        """The task's metrics over ``items``; a ValueError where a metric does not fit the task."""

    @cached_property
    def items(self) -> list[Item]:
        # An example has at least one item, so as many examples as items are enough.
        return [item for example in self._read(self.split, self.limit) for item in self.items_of(example)][: self.limit]

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        self._scorer(cache)
        evaluated = {_image_digest(item.image) for item in self.items}
        ids = {item.id for item in self.items}
        for calibration in calibrations:
            shared = [
                sample.id
                for sample in self._calibration_items(calibration)
                if sample.id in ids or _image_digest(sample.image) in evaluated
            ]
            if shared:
                shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
                raise ValueError(
                    f"task.calibration_split={self.calibration_split}: {len(shared)} calibration samples are also "
                    f"evaluated in task.split={self.split} ({shown}); choose a split apart from it"
                )

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
        """Images with the prompt and the first right text behind it, as in teacher forcing."""
        samples = self._calibration_items(calibration)
        for start in range(0, len(samples), calibration["batch_size"]):
            batch = samples[start : start + calibration["batch_size"]]
            texts = [f"{item.prompt} {item.references[0]}".strip() for item in batch]
            yield dict(
                loaded.processor(images=[item.image for item in batch], text=texts, return_tensors="pt", padding=True)
            )

    @torch.no_grad()
    def predict(self, loaded: LoadedModel, progress: Progress) -> dict[str, str]:
        predictions: dict[str, str] = {}
        for start in range(0, len(self.items), self.batch_size):
            batch = self.items[start : start + self.batch_size]
            inputs = loaded.processor(
                images=[item.image for item in batch],
                text=[item.prompt for item in batch],
                return_tensors="pt",
                padding=True,
                # Text is generated behind the prompt, so padding goes before it.
                padding_side="left",
            )
            inputs = loaded.to_device(inputs)
            tokens = loaded.model.generate(**inputs, **self.generation)
            texts = loaded.processor.batch_decode(_generated(tokens, inputs["input_ids"]), skip_special_tokens=True)
            predictions |= {item.id: text.strip() for item, text in zip(batch, texts, strict=True)}
            progress(len(predictions), len(self.items))
        return predictions

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        return self._scorer(cache).score(predictions)

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        shown = self.items[:count]
        return [(item.id, item.image, [item.prompt] * bool(item.prompt) + list(item.references)) for item in shown]

    @lru_cache(maxsize=1)  # noqa: B019 - a task lives as long as its process
    def _scorer(self, cache: Path) -> Scorer:
        return self.make_scorer(self.items, cache)

    def _calibration_items(self, calibration: Mapping[str, Any]) -> list[Item]:
        """One item an example, by turns the first, the second and so on of those that it has."""
        examples = self._read(self.calibration_split, calibration["samples"], calibration["seed"])
        return [items[index % len(items)] for index, items in enumerate(map(self.items_of, examples))]

    def _read(self, split: str, count: int, seed: int | None = None) -> Sequence[Any]:
        fields = {name: value for name, value in self.data.items() if name != "_target_"}
        if seed is not None:
            fields["seed"] = seed
        examples = list(find_class("task.data._target_", self.data["_target_"])(split=split, count=count, **fields))
        if len(examples) < count:
            raise ValueError(f"{count} examples of {split} asked for, {len(examples)} are there")
        return examples


def _generated(tokens: Tensor, prompt: Tensor) -> Tensor:
    """What was generated: some releases of transformers return the prompt in front of it, some do not."""
    length = prompt.shape[1]
    if tokens.shape[1] >= length and bool((tokens[:, :length] == prompt).all()):
        return tokens[:, length:]
    return tokens


def _image_digest(image: Any) -> str:
    return hashlib.sha256(f"{image.size}{image.mode}".encode() + image.tobytes()).hexdigest()
