"""The record of a finished or failed cell: ``record.json``, written atomically and protected by a digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mmq_sweeps.identity.cell import digest, is_quantized_elsewhere

SCHEMA = 1


class CorruptRecordError(ValueError):
    """Raised for a record whose text differs from the text that was written."""


@dataclass(frozen=True)
class Record:
    """Result of a cell.

    * ``metrics``: name -> ``{"value", "interval", "higher_is_better", "count"}``; plus ``"by_type"`` if items have types,
      ``"definition"`` if several scripts share the metric's name, and ``"warnings"``, sentences that qualify the value.
    * ``answers``: ``{"empty", "identical", "expected", "commonest"}``, how alike the answers are (``metrics.result.Alike``);
      empty of failed cells, of likelihoods, and of records from before it was told.
    * ``size``: as computed by ``quantization/size.py``.
    * ``loads_in``: the loaders that take the cell's export quantized (``identity/loads_in.py``); None if it is not known, as
      of failed cells and of records from before there were exports.
    * ``seconds``: stage -> duration.
    * ``error``: None, or ``{"class", "message", "traceback"}``; plus ``"asked_bytes"`` if memory was refused.
    * ``attempts``: ``{"count", "reasons"}``, the number of tries and the reason for each retry.
    * ``items_sha256``: SHA-256 of ``items.json`` beside the record, with predictions and scores per item.
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
    loads_in: list[str] | None = None
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """True if the cell finished, False if it failed."""
        return self.status == "done"

    @property
    def baseline(self) -> bool:
        """True at full precision: no part is quantized, here or elsewhere."""
        return not self.cell["parts"] and not is_quantized_elsewhere(self.cell)

    def to_json(self) -> str:
        """Serialize the record as JSON, with schema and digest."""
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps({**content, "sha256": digest(content)}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Record:
        """Parse a record; raise ``CorruptRecordError`` if it is damaged or of another schema."""
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
            # Older records lack newer fields, which then have their defaults.
            return Record(**{name: value for name, value in content.items() if name in known})
        except TypeError as error:
            raise CorruptRecordError(f"lacks a field: {error}") from error


def outcome(record: Record) -> str:
    """Summarize a record, as in ``cider 1.2034, 3.1 s``."""
    if not record.done:
        return f"failed, {(record.error or {}).get('class')}"
    metrics = ", ".join(f"{name} {metric['value']:.4f}" for name, metric in record.metrics.items())
    return f"{metrics}, {sum(record.seconds.values()):.1f} s"
