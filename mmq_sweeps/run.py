"""One cell, from its configuration to its record: quantize, evaluate, score, record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmq_sweeps import environment, size
from mmq_sweeps.build import build
from mmq_sweeps.cell import Cell
from mmq_sweeps.errors import StoreError
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.progress import Progress
from mmq_sweeps.quantize import Loaded, Request, compute, load, requests
from mmq_sweeps.record import Record
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

    def compute(self, missing: list[Request], progress: Progress) -> dict[str, Exception]:
        return compute(
            missing,
            self.loaded,
            self.parts,
            self.task,
            self.calibration_batch_size,
            self.store,
            lambda done, total: progress.stage("quantize", done, total),
        )


def run_cell(cell: Cell, bench: Bench, progress: Progress) -> tuple[Record, list[dict[str, Any]]]:
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
        told = {"class": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
    return bench.store.save(replace(record, error=told, peak_memory_bytes=environment.peak_memory())), []


def _saved(record: Record, items: list[dict[str, Any]], bench: Bench, progress: Progress) -> Record:
    try:
        return bench.store.save(record, items)
    except StoreError:
        progress.say(f"measured but not recorded: {record.id}: {outcome(record)}")
        raise


def outcome(record: Record) -> str:
    """A record in a few words: ``cider 1.2034, 3.1 s``."""
    if not record.done:
        return f"failed, {(record.error or {}).get('class')}"
    metrics = ", ".join(f"{name} {metric['value']:.4f}" for name, metric in record.metrics.items())
    return f"{metrics}, {sum(record.seconds.values()):.1f} s"


def _measure(cell: Cell, bench: Bench, progress: Progress, record: Record) -> tuple[Record, list[dict[str, Any]]]:
    quantized = _quantized(cell, bench, progress)
    measured_size = size.measure(bench.loaded.model, bench.parts.values(), quantized.weights)
    seconds = dict(quantized.seconds) if cell.parts else {}

    started = time.perf_counter()
    weights = {name: weight.dequantize() for name, weight in quantized.weights.items()}
    with bench.loaded.weights_replaced(weights):
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
        notes={"solver": quantized.notes} if quantized.notes else {},
    )
    return record, _items(predictions, metrics)


def _quantized(cell: Cell, bench: Bench, progress: Progress) -> Loaded:
    wanted = bench.requests(cell)
    found, missing = load(wanted, bench.loaded, bench.store)
    if missing:
        for error in bench.compute(missing, progress).values():
            raise error
        found, missing = load(wanted, bench.loaded, bench.store)
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
            "scores": {name: result.per_item[item] for name, result in metrics.items()},
        }
        for item, text in predictions.items()
    }
    for name, result in metrics.items():
        if result.totals is not None:
            for item, row in zip(result.per_item, result.totals.tolist(), strict=True):
                items[item].setdefault("totals", {})[name] = row
    return list(items.values())
