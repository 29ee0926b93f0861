"""Interface of a task: the data it reads, the answers it asks of a model, and their scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel

# Called after every batch with the number of items done and their total.
Progress = Callable[[int, int], None]


class Predictions(dict[str, str]):
    """Model's answers by item id; ``not_finite`` holds the ids whose logits or scores were NaN or infinite.

    ``log_probabilities`` holds the log-probability of each answer's tokens, up to and with its end, and their number, if a
    metric asks for it.
    """

    def __init__(self, answers: Mapping[str, str] = MappingProxyType({}), not_finite: Iterable[str] = ()) -> None:
        super().__init__(answers)
        self.not_finite = set(not_finite)
        self.log_probabilities: dict[str, tuple[float, int]] = {}

    def in_order(self, ids: Iterable[str]) -> Predictions:
        """Return the same with the answers in the order of ``ids``."""
        found = Predictions({identity: self[identity] for identity in ids}, self.not_finite)
        found.log_probabilities = self.log_probabilities
        return found


class Task(Protocol):
    """Frozen dataclass with the fields of its yaml in ``conf/task/``."""

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        """Read the data and prepare the metrics, before any cell runs.

        Raises ValueError if items are missing, a metric does not fit the task, or a calibration sample is also
        evaluated; RuntimeError if a metric lacks a dependency. Results that depend only on the references are stored in
        ``cache``.
        """
        ...

    def check_model(self, loaded: LoadedModel) -> Iterator[str]:
        """Ask ``loaded`` a few items at full precision before any cell runs; yield each problem as a sentence.

        Called after ``check``. ``mmq_sweeps.models.model_check`` lists the checks.
        """
        ...

    def notes(self) -> dict[str, Any]:
        """Return facts to record besides the figures: ``{'missing': ...}`` if items were left out, else empty."""
        ...

    def calibration_batches(self, loaded: LoadedModel, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the model's keyword arguments per forward pass, with an ``attention_mask`` ``[B, T]``, 0 on padding.

        An encoder-decoder also gets ``decoder_input_ids`` and ``decoder_attention_mask``; without them, its decoder
        reads the tokens that the model generates.
        """
        ...

    def predict(self, loaded: LoadedModel, progress: Progress) -> Predictions:
        """Return the model's answer to every evaluation item, by item id, decoding images as needed."""
        ...

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        """Return every metric of the task.

        Results carry warnings if ``predictions`` are not finite or items were left out; ``cache`` is as for ``check``.
        """
        ...

    def samples(self, count: int) -> list[tuple[str, Any, list[str]]]:
        """Return id, image and texts (prompt, if any, and references) of the first ``count`` items, for display."""
        ...
