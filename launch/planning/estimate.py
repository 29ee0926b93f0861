"""Estimate the time and disk space of a plan from earlier records of the same model and task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from mmq_sweeps.identity.assignment import method_name, rules_in
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

# Number of latest records to read.
RECENT = 500


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of pending cells on a single worker.

    ``records`` counts the records it is based on, ``cells`` the pending cells that such records cover, and
    ``size_bytes`` the new records and packed weights. ``methods_without`` lists methods that have no record; their
    quantization is not counted.
    """

    seconds: float
    size_bytes: int
    records: int
    cells: int
    methods_without: tuple[str, ...]


@dataclass(frozen=True)
class Earlier:
    """A finished record with its cell and the size of its folder in bytes."""

    cell: Cell
    record: Record
    size_bytes: int

    def seconds(self, *stages: str) -> float:
        return sum(self.record.seconds.get(stage, 0.0) for stage in stages)


def estimate(pending: Sequence[Cell], store: Store) -> Estimate | None:
    """Estimate the cost of ``pending``; return None without a finished record of any of its models and tasks.

    Each cell is charged the median time of evaluating and scoring; calibrating and quantizing are charged once for each
    distinct quantization of a part.
    """
    by_place: dict[str, list[Earlier]] = {}
    wanted = {_place(cell) for cell in pending}
    for earlier in _recent(store):
        if (place := _place(earlier.cell)) in wanted:
            by_place.setdefault(place, []).append(earlier)
    known = [cell for cell in pending if _place(cell) in by_place]
    if not known:
        return None
    seconds = size_bytes = 0.0
    quantized: set[str] = set()
    without: dict[str, None] = {}
    for cell in known:
        records = by_place[_place(cell)]
        seconds += _median(records, lambda one: one.seconds("evaluate", "score"))
        size_bytes += _median(records, lambda one: one.size_bytes)
        for part in cell.parts:
            if (key := cell.part_key(part)) in quantized:
                continue
            quantized.add(key)
            alike = [one for one in records if part in one.cell.parts]
            if same_method := [one for one in alike if _methods(one.cell, part) == _methods(cell, part)]:
                seconds += _median(same_method, lambda one: one.seconds("calibrate", "quantize") / len(one.cell.parts))
            else:
                without |= dict.fromkeys(_methods(cell, part))
            size_bytes += _median(alike, partial(_weights, part)) * _bits(cell.parts[part]) / 8
    return Estimate(seconds, int(size_bytes), sum(map(len, by_place.values())), len(known), tuple(without))


def _methods(cell: Cell, part: str) -> dict[str, None]:
    """Return the names of the methods of a part, without repetition."""
    if all("method" not in rule for selection in cell.parts.values() for rule in rules_in(selection)):
        return {cell.names["method"]: None}
    return dict.fromkeys(method_name(rule.method["_target_"]) for rule in cell.rules(part))


def _bits(selection: Mapping[str, Any]) -> float:
    """Return the mean bits of a selection, by units: their weights are not known before the model is loaded."""
    rules = rules_in(selection)
    counts = [
        len(rule.get("units", ())) or len(rule.get("blocks", " ")) * len(rule.get("layers", " ")) for rule in rules
    ]
    return sum(rule["bits"] * count for rule, count in zip(rules, counts, strict=True)) / sum(counts)


def _weights(part: str, one: Earlier) -> float:
    return float(one.record.size["parts"][part]["quantized_weights"])


def _recent(store: Store) -> Iterable[Earlier]:
    """Yield the latest finished records of the store, newest first."""
    with os.scandir(store.root / "cells") as found:
        folders = sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)
    for folder in folders[:RECENT]:
        record = store.summary(folder.name)
        if record is not None and record.done:
            fields = {name: value for name, value in record.cell.items() if name != "semantics"}
            with os.scandir(folder.path) as files:
                size_bytes = sum(file.stat().st_size for file in files)
            yield Earlier(Cell(**fields, names=record.names), record, size_bytes)


def _place(cell: Cell) -> str:
    """Return a digest of the cell's model and task; metrics are ignored."""
    return digest([cell.model, {key: value for key, value in cell.task.items() if key != "metrics"}])


def _median(records: Sequence[Earlier], value: Callable[[Earlier], float]) -> float:
    return median(value(one) for one in records) if records else 0.0
