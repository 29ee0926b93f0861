"""Base of captioning and question answering: images with prompts in, generated text out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from mmq_sweeps.data.images import image_count, images_of, side_by_side
from mmq_sweeps.identity.roles import EVALUATION, LABEL, UNLESS_NULL
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.metrics.degenerate import of_left_out, of_logits
from mmq_sweeps.metrics.names import load_metrics
from mmq_sweeps.metrics.probability.likelihood import LikelihoodScorer
from mmq_sweeps.models import model_check
from mmq_sweeps.models.finished_rows import finished_rows_left_out
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.logits import watching_logits
from mmq_sweeps.models.model_check import Asked, Asking
from mmq_sweeps.tasks.base import Predictions, Progress
from mmq_sweeps.tasks.examples import Examples, Prepared, decoded, split_up
from mmq_sweeps.tasks.generation.confidence import generate_with_confidence
from mmq_sweeps.tasks.generation.inputs import (
    batches_of,
    by_images,
    examples_of,
    new_tokens,
    prompt_inputs,
    prompts_of,
    seeded,
    taught,
)
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.likelihood import likelihoods
from mmq_sweeps.tasks.generation.teaching import teacher_forced
from mmq_sweeps.tasks.generation.window import too_long
from mmq_sweeps.tasks.items import (
    bad_texts,
    check_ids,
    describe_bad,
    left_out_for,
    naming_the_item,
    problem_of_references,
)
from mmq_sweeps.tasks.sample import drawn


class Scorer(Protocol):
    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]: ...


@dataclass(frozen=True, eq=False)
class GenerationTask(ABC):
    """Generation over the first ``limit`` items of ``split`` (null: all), calibrated on ``calibration_split``.

    ``data`` is a reader (see ``Examples``). ``generation`` goes to the model's ``generate``. With ``allow_missing``,
    items with unusable images or texts are left out and the record says so; otherwise they are an error. ``sample`` chooses
    some of the items (``config/sample.py``). ``apart_from``, the ``samples`` and ``seed`` of the calibration, leaves their
    images out of a split that calibrates as well; they do not count for ``limit``. With ``teacher_forced`` the model is not
    asked to write, but how likely it finds the first right text of each item.

    ``image_prompt`` is the text in ``prompt`` that stands for an image: items with several have it so often, items without
    an image do not. None: all items have one image.
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
    sample: dict[str, Any] | None = field(default=None, metadata=EVALUATION)
    teacher_forced: bool = field(default=False, metadata=EVALUATION)
    image_prompt: str | None = field(default=None, metadata=UNLESS_NULL)
    apart_from: dict[str, Any] | None = field(default=None, metadata=EVALUATION)

    def __post_init__(self) -> None:
        if self.image_prompt is not None and (not self.image_prompt or self.prompt.count(self.image_prompt) != 1):
            raise ValueError(
                f"image_prompt={self.image_prompt!r}: prompt={self.prompt!r} has it {self.prompt.count(self.image_prompt)} "
                "times; give the text in it that stands for the image, or null"
            )

    @abstractmethod
    def items_of(self, example: Any) -> list[Item]:
        """Return the items of an example, at least one, with the prompt about one image."""

    @abstractmethod
    def make_scorer(self, items: Sequence[Item], cache: Path) -> Scorer:
        """Return a scorer of the task's metrics over ``items``; raises ValueError for a metric that does not fit."""

    def problem_of(self, item: Item) -> str | None:
        """Return the reason why ``item`` can neither be asked nor calibrate, or None."""
        if self.image_prompt is None and (count := image_count(item.example)) != 1:
            return (
                f"it has {count or 'no'} images, and the prompt is for one (task.image_prompt is null: docs/tasks.md)"
            )
        return problem_of_references(item.references)

    def _items_about(self, example: Any) -> list[Item]:
        """Return the items of an example, with as many images in the prompt as it has."""
        items, count = self.items_of(example), image_count(example)
        if self.image_prompt is None or count == 1:
            return items
        images = self.image_prompt * count
        return [replace(item, template=item.template.replace(self.image_prompt, images)) for item in items]

    def left_out(self) -> Mapping[str, Any] | None:
        """Return the ``samples`` and ``seed`` of the calibration whose samples are not evaluated, or None."""
        return (self.sample or {}).get("apart_from") or self.apart_from

    def problem_of_scoring(self, item: Item) -> str | None:  # noqa: ARG002
        """Return the reason why the task's metrics cannot score ``item``, though it can be asked, or None."""
        return None

    @cached_property
    def examples(self) -> Examples:
        return Examples(self.data, self.split, self.calibration_split, self.allow_missing)

    @cached_property
    def _prepared(self) -> Prepared[dict[str, Any]]:
        return Prepared()

    @property
    def items(self) -> list[Item]:
        """Evaluated items."""
        usable, bad = {id(example) for example in self.examples.usable(self._shown)}, self._bad
        return [
            item
            for item in self._asked
            if id(item.example) in usable and item.id not in bad and item.id not in self._too_long
        ]

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        if self._bad and not self.allow_missing:
            raise ValueError(
                f"task.split={self.split}: {describe_bad(self._bad, len(self._asked))}. Mend the annotations, or set "
                "task.allow_missing=true to go without them, which every record says"
            )
        if not self.allow_missing:
            self._scorer(cache)
        # Slow, so it runs after the cheap checks; it may leave out items, so the final scorer is made below.
        self.examples.check(self._shown, calibrations, cache, self._check_samples)
        if not self.items:
            raise ValueError(f"task.split={self.split}: {describe_bad(self._bad, len(self._asked))}. None is left")
        self._scorer(cache)

    def check_model(self, loaded: LoadedModel) -> Iterator[str]:
        """Ask the first item and the longest prompt, comparing the logits of the first generated token."""

        def prepare(asked: Sequence[Asked]) -> dict[str, Any]:
            return prompt_inputs(loaded, [list(one.images) for one in asked], [one.text for one in asked])

        def answer(inputs: Mapping[str, Any]) -> Tensor:
            found = loaded.model.generate(
                **inputs,
                max_new_tokens=1,
                num_beams=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits: Tensor = found.logits[0]
            return logits

        if found := too_long(loaded, self.items, self.generation):
            told = f"task.split={self.split}: {describe_bad(found, len(self._asked))}"
            if not self.allow_missing:
                yield f"{told}. Set task.allow_missing=true to go without them, which every record says"
                return
            self._leave_out_too_long(loaded)
            if not self.items:
                yield f"{told}. None is left"
                return
        asking = Asking(loaded, prepare, answer, prompted=True, batched=self.batch_size > 1)
        every = self.items
        # Those with an image go first: without one, only the texts can be checked.
        alike = sorted(by_images(every), key=lambda own: image_count(own[0].example) == 0)
        items = alike[0]
        longest = max(items, key=lambda item: len(item.prompt))
        others = (item for item in [longest, *items] if item.example is not items[0].example)
        template = items[0].template
        texts = ((item.id, replace(item, template=template).prompt_for(loaded.processor)) for item in every)
        problems = list(
            model_check.problems(
                asking,
                Asked(items[0].id, images_of(items[0].example), items[0].prompt_for(loaded.processor)),
                Asked(longest.id, images_of(next(others, longest).example), longest.prompt_for(loaded.processor)),
                template.replace("{question}", ""),
                texts,
            )
        )
        for item in () if problems else (own[0] for own in alike[1:]):
            text = item.prompt_for(loaded.processor)
            problems += model_check.problems_of_places(asking, Asked(item.id, images_of(item.example), text))
        yield from problems

    def notes(self) -> dict[str, Any]:
        missing = self.examples.missing(self._shown) | bad_texts(self._bad | self._too_long)
        return {"missing": missing | {"items": len(self._asked) - len(self.items)}} if missing else {}

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield inputs of images with the prompt and the first right text, as in teacher forcing."""

        def prepare(batch: Sequence[Item]) -> list[dict[str, Any]]:
            return teacher_forced(loaded, *taught(loaded, batch))

        samples = self._samples(self.examples.drawn(calibration))
        batches = batches_of(samples, calibration["batch_size"])
        for _, inputs in Prepared[list[dict[str, Any]]]()(loaded.processor, batches, naming_the_item(prepare)):
            yield from inputs

    @torch.no_grad()
    def predict(self, loaded: LoadedModel, progress: Progress) -> Predictions:
        if self.teacher_forced:
            return self._likelihoods(loaded, progress)
        # A fast tokenizer fails if one thread encodes while another decodes.
        tokenizing = Lock()

        def prepare(batch: Sequence[Item]) -> dict[str, Any]:
            shown = decoded([item.example for item in batch])
            with tokenizing:
                return prompt_inputs(loaded, shown, prompts_of(loaded, batch))

        if self.allow_missing:
            self._leave_out_too_long(loaded)
        items = self.items
        predictions = Predictions()
        progress(0, len(items))  # All may be one batch.
        draws = self._draws(loaded)
        grouped = split_up(items, 1) if draws else batches_of(items, self.batch_size)
        batches = self._prepared(loaded.processor, grouped, naming_the_item(prepare))
        with watching_logits(loaded.model) as watch:
            for batch, prompts in batches:
                with seeded(len(predictions), loaded.device) if draws else nullcontext():
                    generated, sure = self._generate(loaded, batch, prompts, prepare)
                predictions.log_probabilities.update(zip((item.id for item in batch), sure, strict=False))
                with tokenizing:
                    texts = loaded.processor.batch_decode(generated, skip_special_tokens=True)
                predictions.update({item.id: text.strip() for item, text in zip(batch, texts, strict=True)})
                wrong = watch.rows(len(batch))
                predictions.not_finite |= {item.id for item, flag in zip(batch, wrong, strict=True) if flag}
                progress(len(predictions), len(items))
        return predictions.in_order(item.id for item in items)

    def _generate(
        self,
        loaded: LoadedModel,
        batch: Sequence[Item],
        prompts: Mapping[str, Any],
        prepare: Callable[[Sequence[Item]], dict[str, Any]],
    ) -> tuple[Tensor, list[tuple[float, int]]]:
        """Return the new tokens of each row, and their log-probability and number if a metric asks for it.

        Raises ValueError naming an item that the model cannot answer, such as a prompt that is too long.
        """

        def generate(asked: Sequence[Item]) -> tuple[Tensor, list[tuple[float, int]]]:
            inputs = loaded.to_device(prompts if asked is batch else prepare(asked))
            if self._asks_confidence:
                found = generate_with_confidence(loaded.model, inputs, self.generation)
                return new_tokens(found.tokens, inputs["input_ids"]), found.log_probabilities
            with finished_rows_left_out(loaded, self.generation):
                return new_tokens(loaded.model.generate(**inputs, **self.generation), inputs["input_ids"]), []

        return naming_the_item(generate)(batch)

    def _likelihoods(self, loaded: LoadedModel, progress: Progress) -> Predictions:
        items, predictions = self.items, Predictions()
        for batch in batches_of(items, self.batch_size):
            texts, wrong = likelihoods(loaded, *taught(loaded, batch))
            predictions.update({item.id: text for item, text in zip(batch, texts, strict=True)})
            predictions.not_finite |= {item.id for item, flag in zip(batch, wrong, strict=True) if flag}
            progress(len(predictions), len(items))
        return predictions.in_order(item.id for item in items)

    def _draws(self, loaded: LoadedModel) -> bool:
        """Return whether decoding samples; then items run one by one, so that samples do not depend on the batch size."""
        inherited = (getattr(module, "generation_config", None) for module in loaded.model.modules())
        return bool(self.generation.get("do_sample", any(getattr(own, "do_sample", False) for own in inherited)))

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        wrong = len(getattr(predictions, "not_finite", ()))
        warnings = (
            *of_logits(wrong, len(predictions)),
            *of_left_out(len(self._asked) - len(self.items), len(self._asked), left_out_for(self.notes())),
            *self.examples.remarks(examples_of(self.items)),
        )
        return {
            name: result.warned(*warnings)
            for name, result in self._scorer(cache, *self._too_long).score(predictions).items()
        }

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        shown = self.items[:count]
        return [
            (item.id, side_by_side(images_of(item.example)), [item.prompt] * bool(item.prompt) + list(item.references))
            for item in shown
        ]

    @lru_cache(maxsize=1)  # noqa: B019 - a task lives as long as its process
    def _scorer(self, cache: Path, *left_out: str) -> Scorer:  # noqa: ARG002 - cache key
        if self.teacher_forced:
            return LikelihoodScorer([item.id for item in self.items], self.metrics)
        return self.make_scorer(self.items, cache)

    @cached_property
    def _asks_confidence(self) -> bool:
        """True if a metric asks how probable the model finds its own answers."""
        return any(metric.needs == "confidences" for metric in load_metrics(self.metrics))

    @cached_property
    def _asked(self) -> list[Item]:
        """Requested items, whether or not their images are usable."""
        # An example has at least one item, so ``limit`` examples are enough.
        counts: list[int] = []

        def about(example: Any) -> list[Item]:
            found = self._items_about(example)
            counts.append(len(found))
            return found

        # A split may be far larger than the limit, so no example is read that is not asked about.
        every = chain.from_iterable(map(about, self.examples.first(self.limit, self.left_out())))
        found = list(islice(every, self.limit))
        if not found or (self.limit is not None and len(found) < self.limit):
            limit, apart = "null" if self.limit is None else self.limit, self.left_out()
            told = f" without the images of {apart['samples']} calibration samples" if apart else ""
            bare = counts.count(0)
            told += f"; {bare} of its {len(counts)} examples have none, such as no question" if bare else ""
            raise ValueError(f"task.limit={limit}: {self.split} has {len(found)} items to evaluate{told}")
        check_ids(self.split, [(item.id, item.example) for item in found])
        return drawn(found, self.sample, self.split)

    @cached_property
    def _bad(self) -> dict[str, str]:
        """Reasons why items cannot be asked or scored, by item id."""
        found = ((item.id, self.problem_of(item) or self.problem_of_scoring(item)) for item in self._asked)
        return {identity: problem for identity, problem in found if problem is not None}

    @cached_property
    def _too_long(self) -> dict[str, str]:
        """Items left out because the model's window does not hold them, by id; filled once a model is there."""
        return {}

    def _leave_out_too_long(self, loaded: LoadedModel) -> None:
        self._too_long.clear()
        self._too_long.update(too_long(loaded, self.items, self.generation))

    def _samples(self, examples: Sequence[Any]) -> list[Item]:
        """Pick one item per example, cycling through the first, second, ... of each example's items."""
        found = [self._items_about(example) for example in examples]
        bare = [example.id for example, items in zip(examples, found, strict=True) if not items]
        if bare:
            raise ValueError(
                f"task.calibration_split={self.calibration_split}: {len(bare)} of {len(examples)} samples have no items, "
                f"for example {bare[0]!r}"
            )
        return [items[index % len(items)] for index, items in enumerate(found)]

    def _check_samples(self, examples: Sequence[Any]) -> None:
        samples = self._samples(examples)
        bad = {item.id: problem for item in samples if (problem := self.problem_of(item)) is not None}
        if bad:
            raise ValueError(f"task.calibration_split={self.calibration_split}: {describe_bad(bad, len(samples))}")

    @cached_property
    def _shown(self) -> list[Any]:
        """Examples of the requested items, without repeats."""
        return examples_of(self._asked)
