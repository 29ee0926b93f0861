"""Claim cells, so that processes sharing a store do not run the same cell twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.locks import Lock
from mmq_sweeps.store.store import Store

KIND = "cells"


def missing(store: Store, cell_id: str, redo: Mapping[str, str]) -> bool:
    """Return True if a cell has to run: it has no record, or still the one whose SHA-256 ``redo`` names."""
    sha256 = store.record_sha(cell_id)
    return sha256 is None or sha256 == redo.get(cell_id)


@dataclass(frozen=True)
class Claims:
    """Claims on cells of a store. ``redo`` maps the id of each cell to run again to the SHA-256 of its old record."""

    store: Store
    redo: Mapping[str, str] = field(default_factory=dict)

    def missing(self, cell: Cell) -> bool:
        """Return True if ``cell`` still has to run."""
        return missing(self.store, cell.id, self.redo)

    def take(self, cell: Cell) -> Lock | None:
        """Lock a cell to run it; return None if another process holds the lock."""
        return self.store.locks.lock(KIND, cell.id)

    def wait(self, cell: Cell, stop: Callable[[], bool]) -> Lock | None:
        """Wait for another process's cell. Return its lock if the owner died; None if it finished or ``stop()`` is true."""
        return self.store.locks.acquire(KIND, cell.id, lambda: stop() or not self.missing(cell))
