"""What captioning and answering share: images with prompts in, generated text out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from mmq_sweeps.identity.roles import EVALUATION, LABEL
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.base import Progress
from mmq_sweeps.tasks.examples import Examples, Prepared, decoded, split_up


@dataclass(frozen=True)
class Item:
    """One text asked for: about an example's image, with a prompt, the texts that are right, and the kind of item."""

    id: str
    example: Any
    prompt: str
    references: tuple[str, ...]
    kind: str = ""


class Scorer(Protocol):
    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]: ...


@dataclass(frozen=True, eq=False)
class GenerationTask(ABC):
    """The first ``limit`` items of ``split``, or all with null; calibration samples are drawn from ``calibration_split``.

    ``data`` is a reader (``Examples``). ``generation`` goes to the model's ``generate``. With ``allow_missing`` items
    whose image cannot be used are left out, which the record says; without, they are an error.
    """

    name: str = field(metadata=LABEL)
    version: int
    data: dict[str, Any]
    split: str = field(metadata=EVALUATION)
    calibration_split: str
    limit: int | None = field(metadata=EVALUATION)
    prompt: str
    generation: dict[str, Any] = field(metadata=EVALUATION)
    metrics: list[str] = field(metadata=EVALUATION)
    batch_size: int = field(metadata=LABEL)
    allow_missing: bool = field(default=False, metadata=EVALUATION)

    @abstractmethod
    def items_of(self, example: Any) -> list[Item]:
        """The items of one example of the reader; at least one."""

    @abstractmethod
    def make_scorer(self, items: Sequence[Item], cache: Path) -> Scorer:
        """The task's metrics over ``items``; a ValueError where a metric does not fit the task."""

    @cached_property
    def examples(self) -> Examples:
        return Examples(self.data, self.split, self.calibration_split, self.allow_missing)

    @cached_property
    def _prepared(self) -> Prepared[dict[str, Any]]:
        return Prepared()

    @property
    def items(self) -> list[Item]:
        """What is evaluated."""
        usable = {id(example) for example in self.examples.usable(self._shown)}
        return [item for item in self._asked if id(item.example) in usable]

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        if not self.allow_missing:
            self._scorer(cache)
        # Takes longer, and may leave out items that the scorer must not expect.
        self.examples.check(self._shown, calibrations, cache)
        self._scorer(cache)

    def notes(self) -> dict[str, Any]:
        missing = self.examples.missing(self._shown)
        return {"missing": missing | {"items": len(self._asked) - len(self.items)}} if missing else {}

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Images with the prompt and the first right text behind it, as in teacher forcing."""

        def prepare(batch: Sequence[Item]) -> dict[str, Any]:
            texts = [f"{item.prompt} {item.references[0]}".strip() for item in batch]
            shown = _one_each(batch)
            return dict(loaded.processor(images=shown, text=texts, return_tensors="pt", padding=True))

        # One item an example, by turns the first, the second and so on of those that it has.
        found = enumerate(map(self.items_of, self.examples.drawn(calibration)))
        samples = [items[index % len(items)] for index, items in found]
        batches = split_up(samples, calibration["batch_size"])
        for _, inputs in Prepared[dict[str, Any]]()(loaded.processor, batches, prepare):
            yield inputs

    @torch.no_grad()
    def predict(self, loaded: LoadedModel, progress: Progress) -> dict[str, str]:
        # A fast tokenizer fails where one thread encodes while another decodes.
        tokenizing = Lock()

        def prepare(batch: Sequence[Item]) -> dict[str, Any]:
            shown = _one_each(batch)
            with tokenizing:
                found = loaded.processor(
                    images=shown,
                    text=[item.prompt for item in batch],
                    return_tensors="pt",
                    padding=True,
                    # Text is generated behind the prompt, so padding goes before it.
                    padding_side="left",
                )
            return dict(found)

        items = self.items
        predictions: dict[str, str] = {}
        draws = self._draws(loaded)
        batches = split_up(items, 1 if draws else self.batch_size)
        for batch, prompts in self._prepared(loaded.processor, batches, prepare):
            inputs = loaded.to_device(prompts)
            with _seeded(len(predictions), loaded.device) if draws else nullcontext():
                tokens = loaded.model.generate(**inputs, **self.generation)
            with tokenizing:
                texts = loaded.processor.batch_decode(_generated(tokens, inputs["input_ids"]), skip_special_tokens=True)
            predictions |= {item.id: text.strip() for item, text in zip(batch, texts, strict=True)}
            progress(len(predictions), len(items))
        return predictions

    def _draws(self, loaded: LoadedModel) -> bool:
        """Whether tokens are drawn at random: then one item at a time, so that a draw depends on no batch size."""
        inherited = (getattr(module, "generation_config", None) for module in loaded.model.modules())
        return bool(self.generation.get("do_sample", any(getattr(own, "do_sample", False) for own in inherited)))

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        return self._scorer(cache).score(predictions)

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        shown = self.items[:count]
        return [
            (item.id, item.example.image, [item.prompt] * bool(item.prompt) + list(item.references)) for item in shown
        ]

    @lru_cache(maxsize=1)  # noqa: B019 - a task lives as long as its process
    def _scorer(self, cache: Path) -> Scorer:
        return self.make_scorer(self.items, cache)

    @cached_property
    def _asked(self) -> list[Item]:
        """The items asked for, whether or not their images can be used."""
        # An example has at least one item, so as many examples as items are enough.
        every = (item for example in self.examples.first(self.limit) for item in self.items_of(example))
        found = list(islice(every, self.limit))
        if not found or (self.limit is not None and len(found) < self.limit):
            raise ValueError(f"task.limit={self.limit}: {self.split} has {len(found)} items to evaluate")
        return found

    @cached_property
    def _shown(self) -> list[Any]:
        """The examples that the items are about, each once."""
        return list({id(item.example): item.example for item in self._asked}.values())


def _one_each(batch: Sequence[Item]) -> list[list[Any]]:
    # Some processors take a plain list for the several images of one text.
    return [[image] for image in decoded([item.example for item in batch])]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _generated(tokens: Tensor, prompt: Tensor) -> Tensor:
    """What was generated: some releases of transformers return the prompt in front of it, some do not."""
    length = prompt.shape[1]
    if tokens.shape[1] >= length and bool((tokens[:, :length] == prompt).all()):
        return tokens[:, length:]
    return tokens
