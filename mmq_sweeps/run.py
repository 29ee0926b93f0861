"""One cell, from its configuration to its record: quantize, evaluate, score, record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from mmq_sweeps import environment, size
from mmq_sweeps.affine import QuantizedWeight
from mmq_sweeps.build import build
from mmq_sweeps.cell import Cell
from mmq_sweeps.errors import OutOfMemory, StoreError
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.progress import Reporter
from mmq_sweeps.quantize import Loaded, Request, compute, load, requests
from mmq_sweeps.record import Record, outcome
from mmq_sweeps.store import Store
from mmq_sweeps.targets import Part
from mmq_sweeps.tasks.base import Task


@dataclass(frozen=True)
class Bench:
    """What the cells of one model and task share in a process: the model is loaded once, the data read once."""

    loaded: LoadedModel
    parts: Mapping[str, Part]
    task: Task
    calibration_batch_size: int
    store: Store

    @property
    def references(self) -> Path:
        """Where metrics keep what depends on the references only."""
        return self.store.root / "artifacts" / "references"

    def requests(self, cell: Cell) -> list[Request]:
        if cell.method is None:
            return []
        return requests(cell, build("method", cell.method), self.parts)

    def compute(self, missing: list[Request], progress: Reporter) -> dict[str, Exception]:
        return compute(
            missing,
            self.loaded,
            self.parts,
            self.task,
            self.calibration_batch_size,
            self.store,
            lambda done, total: progress.stage("quantize", done, total),
        )


def run_cell(cell: Cell, bench: Bench, progress: Reporter) -> tuple[Record, list[dict[str, Any]]]:
    """Measure ``cell`` and record it. A failure is a record as well; only a store that cannot be written is raised."""
    environment.reset_peak_memory()
    record = Record(
        id=cell.id,
        status="failed",
        cell=cell.effective,
        names=cell.names,
        versions=environment.versions(),
        hardware=environment.hardware(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    try:
        done, items = _measure(cell, bench, progress, record)
        return _saved(replace(done, peak_memory_bytes=environment.peak_memory()), items, bench, progress), items
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever fails in a cell fails that cell only
        told: dict[str, Any] = {
            "class": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        if isinstance(error, OutOfMemory):
            told["asked_bytes"] = error.asked_bytes
    environment.give_back_memory()
    return bench.store.save(replace(record, error=told, peak_memory_bytes=environment.peak_memory())), []


def _saved(record: Record, items: list[dict[str, Any]], bench: Bench, progress: Reporter) -> Record:
    try:
        return bench.store.save(record, items)
    except StoreError:
        progress.say(f"measured but not recorded: {record.id}: {outcome(record)}")
        raise


def _measure(cell: Cell, bench: Bench, progress: Reporter, record: Record) -> tuple[Record, list[dict[str, Any]]]:
    with _memory_told("quantizing", "calibration.batch_size", bench.calibration_batch_size):
        quantized = _quantized(cell, bench, progress)
    measured_size = size.measure(bench.loaded.model, bench.parts.values(), quantized.weights)
    seconds = dict(quantized.seconds) if cell.parts else {}

    started = time.perf_counter()
    with (
        _memory_told("evaluating", "task.batch_size", getattr(bench.task, "batch_size", None)),
        bench.loaded.weights_replaced(Dequantized(quantized.weights)),
    ):
        predictions = bench.task.predict(bench.loaded, lambda done, total: progress.stage("evaluate", done, total))
    seconds["evaluate"] = time.perf_counter() - started

    started = time.perf_counter()
    progress.stage("score", 0, 1)
    metrics = bench.task.score(predictions, bench.references)
    seconds["score"] = time.perf_counter() - started

    record = replace(
        record,
        status="done",
        metrics={name: _summary(result) for name, result in metrics.items()},
        size=measured_size,
        seconds=seconds,
        notes=bench.task.notes() | ({"solver": quantized.notes} if quantized.notes else {}),
    )
    return record, _items(predictions, metrics)


class Dequantized(Mapping[str, Tensor]):
    """Weights made from their codes whenever one is asked for, so that never all of them are there in full."""

    def __init__(self, quantized: Mapping[str, QuantizedWeight]) -> None:
        self._quantized = quantized

    def __getitem__(self, name: str) -> Tensor:
        return self._quantized[name].dequantize()

    def __iter__(self) -> Iterator[str]:
        return iter(self._quantized)

    def __len__(self) -> int:
        return len(self._quantized)


@contextmanager
def _memory_told(doing: str, key: str, batch_size: int | None) -> Iterator[None]:
    """Say of memory that was refused how much it was, how much was in use, and what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not environment.ran_out_of_memory(error):
            raise
        asked = environment.asked_bytes(error)
        needed = f"{environment.told_size(asked)} more" if asked else "more"
        peaks = " and ".join(
            f"{environment.told_size(peak)} of the {place}" for place, peak in environment.peak_memory().items()
        )
        raise OutOfMemory(
            f"{doing} asked for {needed} memory than there is, at a peak of {peaks}; choose a smaller {key} (now "
            f"{batch_size}), a smaller model.dtype or model.device_map=disk",
            asked,
        ) from error


def _quantized(cell: Cell, bench: Bench, progress: Reporter) -> Loaded:
    wanted = bench.requests(cell)
    found, missing = load(wanted, bench.store)
    if missing:
        for error in bench.compute(missing, progress).values():
            raise error
        found, missing = load(wanted, bench.store)
    if missing:
        raise StoreError(f"the store lost {missing[0].unit.name} right after it was written")
    return found


def _summary(result: MetricResult) -> dict[str, Any]:
    return {
        "value": result.value,
        "interval": list(result.interval),
        "higher_is_better": result.higher_is_better,
        "count": result.count,
        **({"by_type": result.by_type} if result.by_type else {}),
    }


def _items(predictions: Mapping[str, str], metrics: Mapping[str, MetricResult]) -> list[dict[str, Any]]:
    """Per item its prediction and scores, and the counts of metrics whose figure is no mean of scores."""
    items: dict[str, dict[str, Any]] = {
        item: {
            "id": item,
            "prediction": text,
            # Of retrieval some metrics are over images, some over texts.
            "scores": {name: result.per_item[item] for name, result in metrics.items() if item in result.per_item},
        }
        for item, text in predictions.items()
    }
    for name, result in metrics.items():
        if result.totals is not None:
            for item, row in zip(result.per_item, result.totals.tolist(), strict=True):
                items[item].setdefault("totals", {})[name] = row
    return list(items.values())
