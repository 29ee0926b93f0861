"""One cell, from its configuration to its record: quantize, evaluate, score, record."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from mmq_sweeps.errors import OutOfMemory
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.session import Session
from mmq_sweeps.identity.cell import FULL_PRECISION_BITS, Cell
from mmq_sweeps.memory import asked_bytes, format_bytes, peak_memory, ran_out_of_memory
from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.quantization import elsewhere, size
from mmq_sweeps.quantization.loaders import loaders
from mmq_sweeps.quantization.stored_units import QuantizedWeights
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.record import Record

logger = logging.getLogger(__name__)
Items = list[dict[str, Any]]


def run_cell(cell: Cell, session: Session, progress: Reporter) -> tuple[Record, Items]:
    """Measure ``cell`` and return its record, not yet saved, with its predictions and scores by item.

    Any error is raised, ``OutOfMemory`` for memory that was refused; ``failure_policy`` decides about another try.
    """
    with _memory_explained("quantizing", "calibration.batch_size", session.calibration_batch_size):
        quantized = session.quantize(cell, progress)
    if quantized.unchanged:
        logger.warning("%s", _unchanged(cell, quantized))
    if quantized.experts_without_tokens:
        logger.warning("%s", _without_tokens(cell, quantized))
    sizes, loads_in, stored_notes = _storage(session, quantized)
    for part, bits in size.larger_parts(sizes).items() if cell.parts else ():
        logger.warning("%s", _larger(cell, part, bits))
    seconds = dict(quantized.seconds) if cell.parts else {}

    started = time.perf_counter()
    with _memory_explained("evaluating", "task.batch_size", getattr(session.task, "batch_size", None)):
        predictions = session.predict(cell, quantized, progress)
    seconds["evaluate"] = time.perf_counter() - started

    started = time.perf_counter()
    progress.stage("score", 0, 1)
    metrics = session.task.score(predictions, session.references)
    seconds["score"] = time.perf_counter() - started

    record = replace(
        new_record(cell),
        status="done",
        metrics={name: _summary(result.warned(*_unchecked(session))) for name, result in metrics.items()},
        answers=next((asdict(result.alike) for result in metrics.values() if result.alike), {}),
        size=sizes,
        loads_in=loads_in,
        seconds=seconds,
        notes=session.task.notes() | _solver_notes(quantized) | stored_notes,
    )
    return record, _items(predictions, metrics)


def _storage(session: Session, quantized: QuantizedWeights) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Return a record's entries on the storage of the model's weights: size, loaders, notes."""
    parts = session.parts.values()
    if (fitted := session.loaded.stored) is not None:
        notes = {"stored": elsewhere.notes(fitted, session.parts)}
        return elsewhere.measure_elsewhere(fitted, parts), elsewhere.loads_in(fitted), notes
    stored = size.stored_linears(quantized.weights)
    model = session.loaded.model
    return size.measure_stored(model, parts, stored), loaders(model, parts, stored), {}


def _unchecked(session: Session) -> tuple[str, ...]:
    """Return the warning that every figure carries if the check of the model was switched off."""
    return () if session.loaded.config.get("check", True) else ("the model was not checked first (model.check=false)",)


def new_record(cell: Cell) -> Record:
    """Return the record of ``cell`` as it begins: failed, until something else is known."""
    return Record(
        id=cell.id,
        status="failed",
        cell=cell.effective,
        names=cell.names,
        versions=environment.versions(),
        hardware=environment.hardware(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


@contextmanager
def _memory_explained(doing: str, key: str, batch_size: int | None) -> Iterator[None]:
    """Turn refused memory into an ``OutOfMemory`` that says how much was asked for and which setting needs less."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not ran_out_of_memory(error):
            raise
        asked = asked_bytes(error)
        needed = f"{format_bytes(asked)} more" if asked else "more"
        peaks = " and ".join(f"{format_bytes(peak)} of the {place}" for place, peak in peak_memory().items())
        raise OutOfMemory(
            f"{doing} asked for {needed} memory than there is, at a peak of {peaks}; choose a smaller {key} (now "
            f"{batch_size}), a smaller model.dtype or model.device_map=disk",
            asked,
        ) from error


def _unchanged(cell: Cell, quantized: QuantizedWeights) -> str:
    """Name the linears that quantization did not change."""
    names, count = quantized.unchanged, len(quantized.weights)
    named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    whole = "this cell measures full precision: " if len(names) == count else ""
    return f"{whole}{cell.title()}: {len(names)} of {count} linears lie on their grid already and stay as they are: {named}"


def _larger(cell: Cell, part: str, bits: float) -> str:
    """Say that a part takes more than at full precision."""
    return (
        f"{cell.title()}: {part} takes {bits:.1f} bits per weight as stored, more than the {FULL_PRECISION_BITS} of full "
        "precision, since its scales, zeros or codebooks outweigh its codes; fewer bits or another method take less"
    )


def _without_tokens(cell: Cell, quantized: QuantizedWeights) -> str:
    """Say how many experts were rounded to nearest for lack of tokens."""
    units = [f"{few} of {count} experts of {unit}" for unit, (few, count) in quantized.experts_without_tokens.items()]
    named = ", ".join(units[:3]) + (f" and some of {len(units) - 3} more units" if len(units) > 3 else "")
    return f"{cell.title()}: {named} met no calibration token and are rounded to nearest; more calibration.samples reach more"


def _solver_notes(quantized: QuantizedWeights) -> dict[str, Any]:
    unreached = {unit: few for unit, (few, _) in quantized.experts_without_tokens.items()}
    notes = {"solver": quantized.notes, "unchanged": quantized.unchanged, "experts_without_tokens": unreached}
    return {name: note for name, note in notes.items() if note}


def _summary(result: MetricResult) -> dict[str, Any]:
    """Return a record's entry of a metric; a ValueError if its value, interval or a score is not a finite number."""
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


def _items(predictions: Mapping[str, str], metrics: Mapping[str, MetricResult]) -> Items:
    """Join predictions and scores by item, with the counts of metrics whose value is not a mean of scores, and its group."""
    items: dict[str, dict[str, Any]] = {
        item: {
            "id": item,
            "prediction": text,
            # Some retrieval metrics score images only, some texts only.
            "scores": {name: result.per_item[item] for name, result in metrics.items() if item in result.per_item},
        }
        for item, text in predictions.items()
    }
    for item, (log_probability, tokens) in getattr(predictions, "log_probabilities", {}).items():
        # Of logits that are no numbers, none is told.
        told = log_probability if math.isfinite(log_probability) else None
        items[item]["log_probability"] = {"sum": told, "mean": told and told / tokens, "tokens": tokens}
    for name, result in metrics.items():
        for item, group in result.groups.items():
            items[item]["group"] = group
        if result.totals is not None:
            for item, row in zip(result.per_item, result.totals.tolist(), strict=True):
                items[item].setdefault("totals", {})[name] = row
    return list(items.values())
