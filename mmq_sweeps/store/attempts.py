"""How often a cell, or work that cells share, was begun and never ended: its process was killed, or its machine died.

``cells/ID/attempts.json`` and ``attempts/WORK.json`` are there while it runs, and stay where nothing was left that could
remove them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmq_sweeps.store.store import Store, explained


@dataclass(frozen=True)
class CrashCounter:
    """Those noted in the file ``name`` of a store."""

    store: Store
    name: str

    @staticmethod
    def of_cell(store: Store, cell_id: str) -> CrashCounter:
        return CrashCounter(store, f"cells/{cell_id}/attempts.json")

    @staticmethod
    def of_work(store: Store, work: str) -> CrashCounter:
        return CrashCounter(store, f"attempts/{work}.json")

    def unended(self) -> list[dict[str, Any]]:
        """Who began it and did not end it, first to last: ``{"host", "process", "begun"}``."""
        try:
            found: list[dict[str, Any]] = json.loads(self._path.read_text())["unended"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []  # A file that cannot be read counts nothing: then it is tried once more than it might be.
        return found

    @contextmanager
    def begun(self) -> Iterator[None]:
        """It runs; however that ends, it has ended."""
        own = {"host": platform.node(), "process": os.getpid(), "begun": datetime.now(UTC).isoformat("T", "seconds")}
        self.store.note(self.name, {"unended": [*self.unended(), own]})
        try:
            yield
        finally:
            self.forget()

    def forget(self) -> None:
        with explained(self._path):
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.store.root / self.name
