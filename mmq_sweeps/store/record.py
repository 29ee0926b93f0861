"""What a finished or failed cell leaves: ``record.json``, written whole or not at all, with its own digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mmq_sweeps.identity.cell import digest

SCHEMA = 1


class CorruptRecordError(ValueError):
    """A record's text is not what was written."""


@dataclass(frozen=True)
class Record:
    """One cell's result.

    ``metrics`` maps a name to ``{"value", "interval", "higher_is_better", "count"}``, with ``"by_type"`` where items
    have kinds, ``"definition"`` where several scripts go by the name, and ``"warnings"``, sentences to show beside the
    value, where it means less than it seems. ``size`` is that of ``size.py``; ``seconds`` maps a stage to its duration;
    ``error`` is ``None`` or ``{"class", "message", "traceback"}``, and ``"asked_bytes"`` where memory was refused.
    ``attempts`` is ``{"count", "reasons"}``: how often the cell was tried, and why each time but the last did not count.
    Per-item predictions and scores lie beside the record in ``items.json``, whose SHA-256 is ``items_sha256``.
    """

    id: str
    status: str
    cell: dict[str, Any]
    names: dict[str, str]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    items_sha256: str | None = None
    created: str = ""
    attempts: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def baseline(self) -> bool:
        return not self.cell["parts"]

    def to_json(self) -> str:
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps({**content, "sha256": digest(content)}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Record:
        """The record that was written; a ``CorruptRecordError`` says what is wrong with ``text``."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise CorruptRecordError(f"is not JSON: {error}") from error
        if not isinstance(content, dict) or "sha256" not in content:
            raise CorruptRecordError("has no sha256")
        stored = content.pop("sha256")
        if digest(content) != stored:
            raise CorruptRecordError("does not match its sha256")
        if content.pop("schema", None) != SCHEMA:
            raise CorruptRecordError(f"has another schema than {SCHEMA}")
        known = {name.name for name in fields(Record)}
        try:
            # A field that came later has its default in the records from before.
            return Record(**{name: value for name, value in content.items() if name in known})
        except TypeError as error:
            raise CorruptRecordError(f"lacks a field: {error}") from error


def outcome(record: Record) -> str:
    """A record in a few words: ``cider 1.2034, 3.1 s``."""
    if not record.done:
        return f"failed, {(record.error or {}).get('class')}"
    metrics = ", ".join(f"{name} {metric['value']:.4f}" for name, metric in record.metrics.items())
    return f"{metrics}, {sum(record.seconds.values()):.1f} s"
