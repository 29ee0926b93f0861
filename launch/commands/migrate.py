"""Migrate a store of an earlier schema in place; an interrupted migration resumes when run again.

From schema 1 to 2: the note of a sweep, ``sweeps/GROUP.json``, becomes ``sweeps/GROUP/sweep.json``; records and
artifacts do not change. A note holds the command and the cells' ids only; the cells come from their records. Their
configurations are not in the store, so a migrated sweep can be shown, but must be run again by its command.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import StoreError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import SCHEMA, Store, explained, schema_json, schema_of

FIELDS = ("model", "task", "parts", "method", "calibration")


@dataclass(frozen=True)
class Migrated:
    """The schema that a store came from, and its numbers of sweeps and records."""

    before: int
    sweeps: int
    records: int


def migrate(root: Path, say: Callable[[str], None], dry_run: bool = False) -> Migrated:
    """Migrate the store at ``root`` to the present schema; raise a ``StoreError`` if it is no store or has a newer schema."""
    before = schema_of(root)
    if before is None:
        raise StoreError(f"{root}: is no store (it has no records); give another with --store FOLDER")
    if before >= SCHEMA:
        Store.reading(root, say)  # Refuses a newer one.
        return Migrated(before, 0, 0)
    reading = Store.assembled(root, say, writable=False)
    records = {record.id: record for record in reading.summaries()}
    store = reading if dry_run else Store.assembled(root, say, writable=True)
    notes = sorted((root / "sweeps").glob("*.json"))
    if not dry_run:
        with explained(root):
            store.files.prepare()
        for path in notes:
            _convert(path, store, records)
        for record in records.values():
            store.note_checkpoint(record)
        with explained(root):
            # Written last, so that an interrupted migration does not count as complete.
            store.files.write(root / "store.json", schema_json())
    return Migrated(before, len(notes), len(records))


def _convert(path: Path, store: Store, records: dict[str, Record]) -> None:
    try:
        note = json.loads(path.read_text())
        command, ids = str(note["command"]), [str(cell_id) for cell_id in note["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        store.files.move_aside(path, f"{path} is no note of a sweep ({error})")
        return
    cells = [cell for cell_id in ids if (cell := _cell(records.get(cell_id))) is not None]
    sweep = Sweep(tuple(cells), {cell.id: {} for cell in cells}, {})
    content: dict[str, Any] = {
        "command": command,
        "created": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="milliseconds"),
        "directory": "",
        "launcher": {},
        "redo": {},
        "plan": [ids],
        "migrated": True,
        **sweep.to_json(),
    }
    store.note(f"sweeps/{path.stem}/sweep.json", content)
    path.unlink()


def _cell(record: Record | None) -> Cell | None:
    """Return the cell of a record; None without a record, or if the cell's id would be different now."""
    if record is None:
        return None
    cell = Cell(**{name: record.cell[name] for name in FIELDS}, names=record.names)
    return cell if cell.id == record.id else None
