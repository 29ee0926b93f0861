"""Whose turn a cell is, where several processes of one or many machines work on the same store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.locks import Lock
from mmq_sweeps.store.store import Store

KIND = "cells"


def missing(store: Store, cell_id: str, redo: Mapping[str, str]) -> bool:
    """Whether a cell is still to be run: it has no record, or the one that ``redo`` names by its SHA-256."""
    sha256 = store.record_sha(cell_id)
    return sha256 is None or sha256 == redo.get(cell_id)


@dataclass(frozen=True)
class Claims:
    """``redo`` maps a cell that has a record, and is to run nevertheless, to the SHA-256 of that record."""

    store: Store
    redo: Mapping[str, str] = field(default_factory=dict)

    def missing(self, cell: Cell) -> bool:
        return missing(self.store, cell.id, self.redo)

    def take(self, cell: Cell) -> Lock | None:
        """The right to run a cell; ``None`` where another process has it."""
        return self.store.lock(KIND, cell.id)

    def wait(self, cell: Cell, stop: Callable[[], bool]) -> Lock | None:
        """The right to run a cell that another process has, once that has died; ``None`` once it has ended, or ``stop``."""
        return self.store.acquire(KIND, cell.id, lambda: stop() or not self.missing(cell))
