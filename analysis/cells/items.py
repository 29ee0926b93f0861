"""Cache results of the items of cells, so that an analysis reads each cell's items once.

Items of a cell are some hundred kilobytes of JSON, and frontiers, sensitivity and audit each ask for those of every cell. So
a reading of a cell's items makes everything that is known to be asked for: its scores, and the summaries that are ``wanted``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmq_sweeps.metrics.intervals import Owners, owners_of

Items = Sequence[dict[str, Any]]
# Makes of a cell's items, of which there may be none, whatever is kept of them.
Summary = Callable[[Items | None], Any]
# Bytes of scores that are kept; cells beyond are read again.
MOST_KEPT = 1_000_000_000


@dataclass(frozen=True)
class Column:
    """The scores ``values`` of a cell by one metric, over the items ``ids``; ``owners`` says which are drawn together."""

    ids: tuple[str, ...]
    values: np.ndarray
    owners: Owners = None


@dataclass
class Book:
    """Summaries of cells' items by place and id of the cell; cells that are selections of others share one book."""

    _wanted: list[Summary] = field(default_factory=list)
    _kept: dict[tuple[str, str], dict[Summary, Any]] = field(default_factory=dict)
    # Of equal item ids, the first by group: cells of a task have the same.
    _ids: dict[tuple[str, ...], tuple[tuple[str, ...], Owners]] = field(default_factory=dict)
    _left: int = MOST_KEPT

    def want(self, summary: Summary) -> None:
        """Make ``summary`` of all items that are read from now on, since it will be asked for."""
        if summary not in self._wanted:
            self._wanted.append(summary)

    def get(self, cell: tuple[str, str], read: Callable[[], Items | None], summary: Summary) -> Any:
        """Return ``summary`` of the items of ``cell``, which ``read`` reads unless it was made before."""
        kept = self._kept.setdefault(cell, {})
        if summary in kept:
            return kept[summary]
        items = read()
        made = {one: one(items) for one in dict.fromkeys([self.scores, *self._wanted, summary]) if one not in kept}
        self._left -= sum(column.values.nbytes for column in made.get(self.scores, {}).values())
        kept |= {one: value for one, value in made.items() if one != self.scores or self._left >= 0}
        return made[summary]

    def scores(self, items: Items | None) -> dict[str, Column]:
        """Return the scores of a cell's items by metric: a summary that is always made.

        Some retrieval metrics are over images, others over texts: not every item has every score.
        """
        found: dict[str, tuple[list[str], list[float]]] = {}
        for item in items or ():
            for name, score in item.get("scores", {}).items():
                ids, values = found.setdefault(name, ([], []))
                ids.append(item["id"])
                values.append(score)
        groups = {item["id"]: item["group"] for item in items or () if "group" in item}
        return {name: self._column(tuple(ids), values, groups) for name, (ids, values) in found.items()}

    def _column(self, ids: tuple[str, ...], values: Sequence[float], groups: Mapping[str, str]) -> Column:
        if ids not in self._ids:
            self._ids[ids] = ids, owners_of(ids, groups)
        first, owners = self._ids[ids]
        return Column(first, np.array(values, dtype=np.float64), owners)


def stacked(columns: Sequence[Column | None]) -> np.ndarray | None:
    """Return the scores ``[cells, items]`` of cells over the same items, in one order; None unless all have these."""
    if not columns or columns[0] is None:
        return None
    first = columns[0].ids
    place = {item: index for index, item in enumerate(first)}
    found = np.empty((len(columns), len(first)))
    for row, column in zip(found, columns, strict=True):
        if column is None or (column.ids is not first and place.keys() != set(column.ids)):
            return None
        row[slice(None) if column.ids is first else [place[item] for item in column.ids]] = column.values
    return found
