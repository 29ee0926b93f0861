"""How often a cell was begun and never ended: its process was killed, or its machine died.

``cells/ID/attempts.json`` is there while a cell runs, and stays where nothing was left that could remove it.
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

from mmq_sweeps.store import Store, explained


@dataclass(frozen=True)
class Attempts:
    """Of one cell in one store."""

    store: Store
    cell_id: str

    def unended(self) -> list[dict[str, Any]]:
        """Who began the cell and did not end it, first to last: ``{"host", "process", "begun"}``."""
        try:
            found: list[dict[str, Any]] = json.loads(self._path.read_text())["unended"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []  # A file that cannot be read counts nothing: then the cell is tried once more than it might be.
        return found

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The cell runs; however that ends, it has ended."""
        own = {"host": platform.node(), "process": os.getpid(), "begun": datetime.now(UTC).isoformat("T", "seconds")}
        self.store.note(self._name, {"unended": [*self.unended(), own]})
        try:
            yield
        finally:
            self.forget()

    def forget(self) -> None:
        with explained(self._path):
            self._path.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"cells/{self.cell_id}/attempts.json"

    @property
    def _path(self) -> Path:
        return self.store.root / self._name
