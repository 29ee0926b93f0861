"""Read the records of stores, each cell once, and find a cell by its id."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmq_sweeps.reporting.compare import Items, conflict
from mmq_sweeps.reporting.table import rows, title
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

# Most cells that an error message names.
CHOICES = 8
# Digits of an id that a table shows, if they tell its cells apart.
SHORTEST_ID = 4
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A record and the store that it was read from."""

    record: Record
    store: Store

    def items(self) -> Items:
        return self.store.items(self.record.id)


def read(sources: Iterable[Path], verb: str) -> dict[str, Stored]:
    """Return the cells of all ``sources`` by id.

    If several stores have a cell, the newest finished record counts; conflicting results are a warning. Raises
    FileNotFoundError if a folder is not a store, ValueError for a source that is not a folder; ``verb`` is named in it.
    """
    found: dict[str, list[Stored]] = {}
    for source in sources:
        if str(source).partition(":")[0] in ("wandb", "published"):
            raise ValueError(f"--source {source}: '{verb}' reads stores only; 'export' writes the table of any source")
        store = opened(source)
        for record in store.records():
            found.setdefault(record.id, []).append(Stored(record, store))
    for cell_id, copies in found.items():
        places = [str(copy.store.record_path(cell_id)) for copy in copies]
        if told := conflict(cell_id, [copy.record for copy in copies], places):
            LOG.warning(told)
    # A finished record wins over a failed one, even if older.
    return {
        cell_id: max(copies, key=lambda copy: (copy.record.done, copy.record.created))
        for cell_id, copies in found.items()
    }


def opened(source: Path) -> Store:
    """Open the store in the folder ``source`` for reading; a FileNotFoundError names the option if it is none."""
    if not (source / "cells").is_dir():
        raise FileNotFoundError(f"--source {source}: is no store (it has no folder 'cells'); run a sweep first")
    return Store.reading(source)


def as_rows(stored: Mapping[str, Stored]) -> list[dict[str, Any]]:
    """Return the rows of a sweep's table."""
    return rows([one.record for one in stored.values()], lambda cell_id: stored[cell_id].items())


def find(stored: Mapping[str, Stored], beginning: str) -> Stored:
    """Return the cell whose id begins with ``beginning``; raise ValueError, naming choices, unless there is exactly one."""
    if beginning in stored:
        return stored[beginning]
    fitting = sorted(cell_id for cell_id in stored if beginning and cell_id.startswith(beginning))
    if len(fitting) == 1:
        return stored[fitting[0]]
    if fitting:
        raise ValueError(f"cell {beginning}: fits {len(fitting)} cells. Choose {_named(stored, fitting)}")
    nearest = _nearest(beginning, sorted(stored))
    hint = f"nearest: {_named(stored, nearest)}" if nearest else f"there are {_named(stored, sorted(stored))}"
    raise ValueError(f"cell {beginning!r}: unknown; {hint}; 'python -m analysis table --json' has every id")


def _nearest(beginning: str, ids: Sequence[str]) -> list[str]:
    starts: dict[str, list[str]] = {}
    for cell_id in ids:
        starts.setdefault(cell_id[: len(beginning)], []).append(cell_id)
    close = difflib.get_close_matches(beginning, starts, n=3)
    return [cell_id for start in close for cell_id in starts[start]]


def _named(stored: Mapping[str, Stored], ids: Sequence[str]) -> str:
    titles = {row["id"]: title(row) for row in rows([stored[one].record for one in ids[:CHOICES]], lambda _: [])}
    more = f" and {len(ids) - CHOICES} more" if len(ids) > CHOICES else ""
    return ", ".join(f"{one} ({titles[one]})" for one in ids[:CHOICES]) + more
