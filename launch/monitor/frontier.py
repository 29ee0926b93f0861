"""Results of a sweep so far: finished cells by bits per weight and quality, and those that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.reporting.compare import family_of, settings, told_apart
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import metric_label
from mmq_sweeps.store.record import Record


@dataclass(frozen=True)
class Point:
    """A finished cell: bits per weight by the study's formula, and its first metric."""

    cell: str
    title: str
    method: str
    bpw: float
    value: float


@dataclass(frozen=True)
class Results:
    """The finished cells of a model and task. ``full`` is full precision's value, None before it is measured.

    ``latest`` is when the last of them was recorded.
    """

    title: str
    metric: str
    higher: bool
    full: float | None
    points: tuple[Point, ...]
    latest: str

    @property
    def label(self) -> str:
        return metric_label(self.metric)

    def frontier(self, method: str | None = None) -> list[Point]:
        """Return the cells (of ``method``) that no other beats in both bits and quality, from the fewest bits on."""
        found: list[Point] = []
        chosen = [point for point in self.points if method in (None, point.method)]
        for point in sorted(chosen, key=lambda point: (point.bpw, -self._worth(point))):
            if not found or self._worth(point) > self._worth(found[-1]):
                found.append(point)
        return found

    def best(self, max_bpw: float | None = None) -> Point | None:
        """Return the best cell of at most ``max_bpw`` bits per weight; of equal ones the smallest."""
        within = [point for point in self.frontier() if max_bpw is None or point.bpw <= max_bpw]
        return within[-1] if within else None

    def _worth(self, point: Point) -> float:
        return point.value if self.higher else -point.value

    def sentence(self, max_bpw: float | None, ended: bool = False) -> str:
        """Say which cell is the best, "so far" unless the sweep has ``ended``, with its share of full precision.

        With ``max_bpw``, of the cells of at most so many bits per weight.
        """
        within = "" if max_bpw is None else f" within {counted(max_bpw, 'bit')} per weight"
        best = self.best(max_bpw)
        if best is None:
            return f"{self.title}: none{within} of {counted(len(self.points), 'finished cell')}"
        share = f", {best.value / self.full:.1%} of full precision" if self.full else ""
        told = f"{self.label} {best.value:.4f} at {best.bpw:.2f}{share}"
        return f"{self.title}: best{within}{'' if ended else ' so far'}: {best.title} ({best.cell}), {told}"

    def as_json(self, max_bpw: float | None) -> dict[str, Any]:
        """Return the frontier and the best cell as plain values."""
        best = self.best(max_bpw)
        return {
            "title": self.title,
            "metric": self.metric,
            "full_precision": self.full,
            "frontier": [vars(point) for point in self.frontier()],
            "best": None if best is None else vars(best),
        }


def results(finished: Iterable[tuple[str, Record]], known: dict[str, str] | None = None) -> tuple[Results, ...]:
    """Gather finished cells, given ``(title, record)``, by model and task; the one with the newest record first.

    ``known`` caches the families of cells by id: a family is a digest of a long configuration.
    """
    known = {} if known is None else known
    families: dict[str, list[tuple[str, Record]]] = {}
    for title, record in finished:
        if record.done and record.metrics and record.size.get("total"):
            if record.id not in known:
                known[record.id] = family_of(record.cell)
            families.setdefault(known[record.id], []).append((title, record))
    first = [rows[0][1] for rows in families.values()]
    names = [f"{record.names['model']}, {record.names['task']}" for record in first]
    cells = [settings(record.cell, {}) for record in first]
    found = []
    for number, (name, rows) in enumerate(zip(names, families.values(), strict=True)):
        alike = [place for place, other in enumerate(names) if other == name]
        text = told_apart([cells[place] for place in alike])[alike.index(number)]
        found.append(_of(f"{name} [{text}]" if text else name, rows))
    return tuple(sorted(found, key=lambda one: one.latest, reverse=True))


def _of(title: str, rows: list[tuple[str, Record]]) -> Results:
    metric = next(iter(rows[0][1].metrics))
    measured = [(name, record) for name, record in rows if _finite(record, metric)]
    full = [record.metrics[metric]["value"] for _, record in measured if record.baseline]
    points = tuple(
        Point(
            record.id, name, record.names["method"], record.size["total"]["bpw_paper"], record.metrics[metric]["value"]
        )
        for name, record in measured
        if not record.baseline
    )
    higher = rows[0][1].metrics[metric].get("higher_is_better", True)
    return Results(title, metric, higher, full[0] if full else None, points, max(record.created for _, record in rows))


def _finite(record: Record, metric: str) -> bool:
    value = record.metrics.get(metric, {}).get("value")
    return value is not None and math.isfinite(value)
