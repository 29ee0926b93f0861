"""Read the searches of stores: ``sweeps/ID/search.json``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmq_sweeps.errors import StoreError

AGAIN = "it has not ended; run its command again to go on"


@dataclass(frozen=True)
class Search:
    """A search of the store ``source``; ``content`` is its file."""

    id: str
    content: dict[str, Any]
    source: str = ""

    @property
    def done(self) -> bool:
        """True if it has its answers."""
        return bool(self.content["state"] == "done")

    @property
    def title(self) -> str:
        """Model, task and granularity, as in ``tiny_blip2, scenes_caption, by unit``."""
        return f"{self.content['model']}, {self.content['task']}, by {self.content['settings']['granularity']}"

    def export_command(self, cell: str) -> str:
        """Return the command that exports a cell, by the store's path as it was given."""
        return f"{shlex.join(['python', '-m', 'mmq_sweeps.export', cell, '--source', self.source])} --out DIR"

    @property
    def unfinished(self) -> str:
        """A sentence on a search that has not ended; empty if it has."""
        if self.done:
            return ""
        reason = self.content.get("reason")
        return f"search {self.id}: {AGAIN}: {self.content['command']}" + (f" (it stopped: {reason})" if reason else "")


def searches(sources: Iterable[str]) -> list[Search]:
    """Return the searches of the stores among ``sources``, the latest first; a ``StoreError`` for one that is unreadable."""
    found = {}
    for source in sources:
        for path in Path(source).glob("sweeps/*/search.json"):
            try:
                content = json.loads(path.read_text())
                found[path.parent.name] = Search(path.parent.name, {**content, "updated": content["updated"]}, source)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(f"cannot read {path}: {error}") from error
    return sorted(found.values(), key=lambda one: one.content["updated"], reverse=True)
