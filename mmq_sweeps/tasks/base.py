"""What a task is: the data it reads, the answers it asks of a model, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel

# Told the number of items done and of all items, after every batch.
Progress = Callable[[int, int], None]


class Predictions(dict[str, str]):
    """The model's answer to every item, by the item's id; ``not_finite`` holds the ids whose logits or scores were not."""

    def __init__(self, answers: Mapping[str, str] = MappingProxyType({}), not_finite: Iterable[str] = ()) -> None:
        super().__init__(answers)
        self.not_finite = set(not_finite)


class Task(Protocol):
    """A frozen dataclass whose fields are those of its yaml in ``conf/task/``."""

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        """Read the data and prepare the metrics, before any cell runs.

        A ValueError where items are missing, a metric does not fit the task or a calibration sample is an evaluation
        item; a RuntimeError where a metric misses what it needs. What depends on the references only is kept in ``cache``.
        """
        ...

    def check_model(self, loaded: LoadedModel) -> Iterator[str]:
        """Ask ``loaded`` a few items at full precision, before any cell runs: each problem in one sentence.

        Called after ``check``. ``mmq_sweeps.models.check`` says what is looked at.
        """
        ...

    def notes(self) -> dict[str, Any]:
        """What a record must say besides its figures: ``{"missing": ...}`` where items were left out; empty as a rule."""
        ...

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The model's keyword arguments, a forward pass at a time, with an ``attention_mask`` ``[B, T]``, 0 on padding.

        For an encoder-decoder also ``decoder_input_ids`` and ``decoder_attention_mask``; without, its decoder reads what the
        model generates.
        """
        ...

    def predict(self, loaded: LoadedModel, progress: Progress) -> Predictions:
        """The model's answer to every evaluation item, by the item's id. Images are decoded as they are needed."""
        ...

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        """Every metric of the task, with warnings where ``predictions`` says so or items were left out; ``cache`` as above."""
        ...

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        """The id, image and texts (prompt, if any, and references) of the first ``count`` items, for people to look at."""
        ...
