"""One cell, from its configuration to its record: quantize, evaluate, score, record."""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.errors import OutOfMemory, StoreError
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.output_cache import KIND as OUTPUTS
from mmq_sweeps.execution.output_cache import Player
from mmq_sweeps.execution.session import BATCH_SIZES, Warm
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods.affine import QuantizedWeight
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization import size
from mmq_sweeps.quantization.quantize import Loaded, Request, compute, load, requests
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.locks import Artifact
from mmq_sweeps.store.record import Record, outcome
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks.base import Task


@dataclass(frozen=True)
class Bench:
    """What the cells of one model and task share in a process: the model is loaded once, the data read once.

    ``warm`` is what stays from cell to cell, if anything. ``retries`` is how often a cell is begun again whose process was
    killed.
    """

    loaded: LoadedModel
    parts: Mapping[str, Part]
    task: Task
    calibration_batch_size: int
    store: Store
    warm: Warm | None = None
    retries: int = 3

    @property
    def references(self) -> Path:
        """Where metrics keep what depends on the references only."""
        return self.store.root / "artifacts" / "references"

    def requests(self, cell: Cell) -> list[Request]:
        if cell.method is None:
            return []
        # By part: a sweep has many cells, and few quantizations of each part.
        known = {} if self.warm is None else self.warm.requests
        found = []
        for part in cell.parts:
            key = cell.part_key(part)
            if key not in known:
                known[key] = requests(cell, build("method", cell.method_node), self.parts, [part])
            found += known[key]
        return found

    def outputs(self, cell: Cell) -> list[Artifact]:
        """The kept outputs of parts that ``cell`` shares with other cells of the sweep."""
        keys = [] if self.warm is None else self.warm.output_keys(cell, self.task)
        return [(OUTPUTS, key) for key in keys]

    def halved(self) -> Bench | None:
        """The same with batches of half the size; ``None`` where there is nothing to halve."""
        task = copy.copy(self.task)  # With all that it has read.
        sizes = {name: size for name in BATCH_SIZES if (size := getattr(task, name, 1)) > 1}
        if not sizes and self.calibration_batch_size == 1:
            return None
        for name, size in sizes.items():
            object.__setattr__(task, name, size // 2)
        return replace(self, task=task, calibration_batch_size=max(1, self.calibration_batch_size // 2))

    def compute(self, missing: list[Request], progress: Reporter) -> dict[str, Exception]:
        if self.warm is not None:
            self.warm.placement.restore()  # It is calibrated at full precision.
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
    """Measure ``cell`` and record it. A failure is a record as well; only a store that cannot be written is raised.

    A cell that is refused memory is tried once more with half the batch. One whose process was killed, more often than
    ``bench.retries`` allows, is recorded as failed.
    """
    attempts = CrashCounter.of_cell(bench.store, cell.id)
    reasons = [f"WorkerDied: process {one['process']} of {one['host']}" for one in attempts.unended()]
    if len(reasons) > bench.retries:
        record = replace(_new(cell), error=_died(reasons), attempts=_counted(reasons[:-1]))
        attempts.forget()
        return _saved(record, [], bench, progress), []
    with attempts.begun():
        record, items = _attempt(cell, bench, progress)
        smaller = bench.halved()
        if record.error and record.error["class"] == OutOfMemory.__name__ and smaller is not None:
            reasons.append(f"OutOfMemory: {record.error['message']}")
            progress.say(f"warning: {cell.title()}: {record.error['message']}; it is tried with half the batch")
            record, items = _attempt(cell, smaller, progress)
        return _saved(replace(record, attempts=_counted(reasons)), items, bench, progress), items


def _new(cell: Cell) -> Record:
    return Record(
        id=cell.id,
        status="failed",
        cell=cell.effective,
        names=cell.names,
        versions=environment.versions(),
        hardware=environment.hardware(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def failed_record(cell: Cell, error: Exception) -> Record:
    """The record, not yet saved, of a cell that could not be begun because of ``error``."""
    trace = "".join(traceback.format_exception(error))
    return replace(_new(cell), error={"class": type(error).__name__, "message": str(error), "traceback": trace})


def _counted(reasons: Sequence[str]) -> dict[str, Any]:
    """How often a cell was tried, and why each time but the last did not count."""
    return {"count": len(reasons) + 1, "reasons": list(reasons)}


def _died(reasons: Sequence[str]) -> dict[str, Any]:
    message = (
        f"the process that ran it was killed {len(reasons)} times, as by a lack of memory or the end of its job; it is "
        "tried again with retry=failed"
    )
    return {"class": "WorkerDied", "message": message, "traceback": "\n".join(reasons)}


def _attempt(cell: Cell, bench: Bench, progress: Reporter) -> tuple[Record, list[dict[str, Any]]]:
    """The record of one try, not yet saved, and its items."""
    environment.reset_peak_memory()
    record = _new(cell)
    try:
        with _warm(bench) as warm:
            done, items = _measure(cell, bench, warm, progress, record)
        return replace(done, peak_memory_bytes=environment.peak_memory()), items
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
            if bench.warm is not None:
                bench.warm.let_go()
    environment.give_back_memory()
    return replace(record, error=told, peak_memory_bytes=environment.peak_memory()), []


@contextmanager
def _warm(bench: Bench) -> Iterator[Warm]:
    """What stays from cell to cell; after a failure, or where nothing stays, the model is at full precision again."""
    warm = bench.warm or Warm.of(bench.loaded, bench.parts, bench.store, {})
    try:
        yield warm
    except BaseException:
        warm.placement.restore()
        raise
    if bench.warm is None:
        warm.placement.restore()


def _saved(record: Record, items: list[dict[str, Any]], bench: Bench, progress: Reporter) -> Record:
    try:
        return bench.store.save(record, items if record.done else None)
    except StoreError:
        if not record.done:
            raise
        progress.say(f"measured but not recorded: {record.id}: {outcome(record)}")
        raise


def _measure(
    cell: Cell, bench: Bench, warm: Warm, progress: Reporter, record: Record
) -> tuple[Record, list[dict[str, Any]]]:
    with _memory_told("quantizing", "calibration.batch_size", bench.calibration_batch_size):
        quantized = _quantized(cell, bench, warm, progress)
    measured_size = size.measure(bench.loaded.model, bench.parts.values(), quantized.weights)
    seconds = dict(quantized.seconds) if cell.parts else {}

    started = time.perf_counter()
    with _memory_told("evaluating", "task.batch_size", getattr(bench.task, "batch_size", None)):
        predictions = _predictions(cell, bench, warm, quantized.weights, progress)
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
        notes=bench.task.notes() | _solver_notes(quantized),
    )
    return record, _items(predictions, metrics)


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


def _predictions(
    cell: Cell, bench: Bench, warm: Warm, weights: Mapping[str, QuantizedWeight], progress: Reporter
) -> dict[str, str]:
    def predict() -> dict[str, str]:
        return bench.task.predict(bench.loaded, lambda done, total: progress.stage("evaluate", done, total))

    players: list[Player] = []
    try:
        with warm.evaluating(cell, bench.task, weights) as players:
            return predict()
    except Exception as error:
        # Kept outputs hold what the model looked at when they were recorded. If it looks at more, it finds nothing.
        if environment.ran_out_of_memory(error) or not any(player.replayed for player in players):
            raise
    for player in players:
        warm.outputs.refuse(player.key)
    with warm.evaluating(cell, bench.task, weights, replay=False):
        return predict()


def _quantized(cell: Cell, bench: Bench, warm: Warm, progress: Reporter) -> Loaded:
    wanted = bench.requests(cell)
    found, missing = load(wanted, bench.store, warm.units)
    if missing:
        for error in bench.compute(missing, progress).values():
            raise error
        found, missing = load(wanted, bench.store, warm.units)
    if missing:
        raise StoreError(f"the store lost {missing[0].unit.name} right after it was written")
    if found.unchanged:
        progress.say(_unchanged(cell, found))
    return found


def _unchanged(cell: Cell, quantized: Loaded) -> str:
    """A line that names linears which quantization did not change."""
    names, count = quantized.unchanged, len(quantized.weights)
    named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    warning = "warning: this cell measures full precision: " if len(names) == count else ""
    return f"{warning}{cell.title()}: {len(names)} of {count} linears lie on their grid already and stay as they are: {named}"


def _solver_notes(quantized: Loaded) -> dict[str, Any]:
    notes = {"solver": quantized.notes, "unchanged": quantized.unchanged}
    return {name: note for name, note in notes.items() if note}


def _summary(result: MetricResult) -> dict[str, Any]:
    """What the record has of a metric; a ValueError where its figure, its interval or a score is no number."""
    figures = {"its value": result.value, "its interval": sum(result.interval)} | {
        f"the score of {item!r}": score for item, score in result.per_item.items()
    }
    if wrong := next((name for name, figure in figures.items() if not math.isfinite(figure)), None):
        raise ValueError(f"metric {result.name}: {wrong} is {figures[wrong]}, which is no figure")
    return {
        "value": result.value,
        "interval": list(result.interval),
        "higher_is_better": result.higher_is_better,
        "count": result.count,
        **({"by_type": result.by_type} if result.by_type else {}),
        **({"definition": result.definition} if result.definition else {}),
        **({"warnings": list(result.warnings)} if result.warnings else {}),
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
