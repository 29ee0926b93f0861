"""Make cells that vary all that a study may: narrowed parts, group sizes, settings, metrics of either direction, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.cell import digest
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

PARTS = ("vision", "connector", "language")
EVERYTHING = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}


def made(
    method: str,
    parts: Mapping[str, int | Mapping[str, Any]],
    bpw: float,
    metrics: Mapping[str, float],
    *,
    exact: float | None = None,
    task: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    lower: Sequence[str] = (),
    warnings: Mapping[str, list[str]] | None = None,
    count: int = 20,
    has: Sequence[str] = PARTS,
    names: tuple[str, str] = ("m", "t"),
    **more: Any,
) -> Record:
    """Make a finished cell; ``parts`` maps a part to its bits, or to a selection that narrows it or has a group size."""
    selections = {
        part: {**EVERYTHING, **({"bits": chosen} if isinstance(chosen, int) else chosen)}
        for part, chosen in parts.items()
    }
    cell = {
        "model": {"checkpoint": "m", "parts": {part: {} for part in has}, **(model or {})},
        "task": dict(task or {}),
        "parts": selections,
        "method": {"_target_": f"mmq_sweeps.methods.{method}.Method", **(fields or {})} if parts else None,
        "calibration": None,
    }
    told = {
        name: {
            "value": value,
            "interval": [value - 0.01, value + 0.01],
            "higher_is_better": name not in lower,
            "count": count,
            **({"warnings": warnings[name]} if warnings and name in warnings else {}),
        }
        for name, value in metrics.items()
    }
    return Record(
        id=f"{method}-{digest([cell, names])[:12]}",
        status="done",
        cell=cell,
        names={"model": names[0], "task": names[1], "method": method if parts else "none"},
        metrics=told,
        size={
            "total": {"bpw_paper": bpw, "bpw_exact": bpw + 0.1 if exact is None else exact, "size_bytes": 1000},
            "parts": {part: {"quantized_weights": 100 * (part in parts)} for part in has},
        },
        seconds={"evaluate": 1.0},
        created="2026-01-01T00:00:00.000+00:00",
        **more,
    )


def items(record: Record, says: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Make as many items as the cell counts, whose scores are the cell's figures."""
    count = max((metric["count"] for metric in record.metrics.values()), default=0)
    scores = {name: metric["value"] for name, metric in record.metrics.items()}
    said = says or [f"{number} of {sorted(scores.items())}" for number in range(count)]
    return [{"id": str(number), "prediction": text, "scores": scores} for number, text in enumerate(said)]


def stored(folder: Path, *records: Record, says: Mapping[str, Sequence[str]] | None = None) -> str:
    """Save ``records`` and return the store's folder as a source; ``says`` has the predictions of some, by id."""
    store = Store.open(folder)
    for record in records:
        store.save(record, items(record, (says or {}).get(record.id)))
    return str(folder)
