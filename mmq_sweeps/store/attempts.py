"""Count crashes: attempts at a cell, or at work shared by cells, whose process was killed or whose machine died.

An attempt writes ``cells/ID/attempts.json`` or ``attempts/WORK.json`` before it starts and removes it when it ends. A file
that stays behind therefore records a crash.
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
    """Crash counter of a cell or of shared work, in the file ``name`` (a path relative to the store)."""

    store: Store
    name: str

    @staticmethod
    def of_cell(store: Store, cell_id: str) -> CrashCounter:
        """Return the counter of a cell."""
        return CrashCounter(store, f"cells/{cell_id}/attempts.json")

    @staticmethod
    def of_work(store: Store, work: str) -> CrashCounter:
        """Return the counter of work that several cells share."""
        return CrashCounter(store, f"attempts/{work}.json")

    def unended(self) -> list[dict[str, Any]]:
        """Return the attempts that never ended, oldest first, each as ``{"host", "process", "begun"}``."""
        try:
            found: list[dict[str, Any]] = json.loads(self._path.read_text())["unended"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []  # An unreadable file counts as no crash: better a retry too many than a cell given up.
        return found

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Note an attempt for the duration of the context; leaving it, even by an exception, clears all attempts."""
        own = {"host": platform.node(), "process": os.getpid(), "begun": datetime.now(UTC).isoformat("T", "seconds")}
        self.store.note(self.name, {"unended": [*self.unended(), own]})
        try:
            yield
        finally:
            self.forget()

    def forget(self) -> None:
        """Clear all attempts."""
        with explained(self._path):
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.store.root / self.name
