"""The store: a folder of records and artifacts. It is the source of truth; trackers only mirror it.

    store.json                           schema version
    cells/ID/record.json, items.json     a folder per cell; attempts.json counts its crashes (attempts.py)
    artifacts/KIND/KEY.safetensors,.json tensors shared by cells (artifacts.py)
    sweeps/SWEEP/                        cells, command and workers of a sweep
    attempts/                            crashes of work that cells share (attempts.py)
    locks/KIND/NAME.json, pins/          locks, and artifacts needed by running jobs (locks.py)
    models/                              checkpoints by model.name (checkpoint_names.py)
    wandb/                               offline runs of the tracker
    corrupt/                             files with a wrong digest, moved aside
    tmp/                                 files being written

All files are written atomically, so a process killed at any moment leaves a usable store. Nothing from the store is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmq_sweeps.errors import StoreError
from mmq_sweeps.store import checkpoint_names
from mmq_sweeps.store.artifacts import PAUSE_SECONDS, READ_RETRIES, Artifacts
from mmq_sweeps.store.atomic_files import STALE_SECONDS, Files, explained
from mmq_sweeps.store.eviction import GB, Eviction
from mmq_sweeps.store.locks import LEASE_SECONDS, Locks
from mmq_sweeps.store.record import CorruptRecordError, Record

__all__ = ["SCHEMA", "STALE_SECONDS", "Store", "explained"]

# Raise it if the layout changes; a store of another schema is refused.
SCHEMA = 2


@dataclass(frozen=True)
class Store:
    """Store at ``root``: its records, ``artifacts`` and ``locks``. It logs a warning for each problem that it repairs."""

    root: Path
    files: Files = field(compare=False, repr=False)
    locks: Locks = field(compare=False, repr=False)
    artifacts: Artifacts = field(compare=False, repr=False)

    @staticmethod
    def open(
        root: str | Path,
        *,
        max_gb: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
        label: str = "",
    ) -> Store:
        """Open a store for writing; create it if necessary.

        Args:
            max_gb: bound for all artifacts together, in units of 10**9 bytes; None: unbounded.
            lease_seconds: a lock without a heartbeat for so long may be taken over.
            label: shown to those who ask for the owner of a lock.

        Raises:
            StoreError: the store cannot be written, or has another schema.
        """
        store = Store._assembled(Path(root), True, max_gb, lease_seconds, label)
        with explained(store.root):
            schema = _schema_of(store.root)
            _refuse_other(schema, store.root)
            store.files.prepare()
            if schema is None:
                store.files.create(store.root / "store.json", (json.dumps({"schema": SCHEMA}) + "\n").encode())
        return store

    @staticmethod
    def of(settings: Mapping[str, Any], label: str = "") -> Store:
        """Open the store described by the ``store`` section of a configuration."""
        lease_seconds = settings.get("lease_seconds", LEASE_SECONDS)
        return Store.open(settings["dir"], max_gb=settings.get("max_gb"), lease_seconds=lease_seconds, label=label)

    @staticmethod
    def existing(root: str | Path) -> Store:
        """Open a store that exists for writing; a ``StoreError`` if there is none, where ``open`` would make one."""
        Store.reading(root)
        return Store.open(root)

    @staticmethod
    def reading(root: str | Path) -> Store:
        """Open a store read-only. Nothing in it changes, so write permission is not needed."""
        store = Store._assembled(Path(root), writable=False)
        if not (store.root / "cells").is_dir():
            raise StoreError(f"{store.root}: is no store (it has no folder 'cells'); run a sweep first")
        _refuse_other(_schema_of(store.root), store.root)
        return store

    @staticmethod
    def _assembled(
        root: Path,
        writable: bool,
        max_gb: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
        label: str = "",
    ) -> Store:
        """Put a store together without checking the folder or its schema; use ``open`` or ``reading``."""
        files = Files(root.absolute(), writable)
        locks = Locks(files, lease_seconds, label)
        eviction = Eviction(files, locks, None if max_gb is None else int(max_gb * GB))
        return Store(files.root, files, locks, Artifacts(files, eviction))

    def record(self, cell_id: str) -> Record | None:
        """Load the record of a cell; None if absent. A corrupt record is moved aside and counts as absent."""
        return self._read_record(cell_id, with_items=True)

    def summary(self, cell_id: str) -> Record | None:
        """Load a record without verifying its items, which would be most of the reading."""
        return self._read_record(cell_id, with_items=False)

    def record_path(self, cell_id: str) -> Path:
        """Return the path of a cell's record, existing or not."""
        return self.root / "cells" / cell_id / "record.json"

    def record_sha(self, cell_id: str) -> str | None:
        """Return the SHA-256 of a record's file, to distinguish a cell's new record from its old; None if absent."""
        try:
            return hashlib.sha256(self.record_path(cell_id).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def cell_ids(self) -> list[str]:
        """Return the ids of all cells that have a folder, with or without a record."""
        return sorted(folder.name for folder in (self.root / "cells").iterdir())

    def records(self) -> list[Record]:
        """Load all readable records, oldest first."""
        found = (self.record(cell_id) for cell_id in self.cell_ids())
        return sorted(filter(None, found), key=lambda record: (record.created, record.id))

    def items(self, cell_id: str) -> list[dict[str, Any]]:
        """Load the items of a finished cell, each as ``{"id", "prediction", "scores": {metric: score}}``."""
        items: list[dict[str, Any]] = json.loads((self.record_path(cell_id).parent / "items.json").read_text())
        return items

    def save(self, record: Record, items: list[dict[str, Any]] | None = None) -> Record:
        """Write the items, then the record; return the record as written."""
        path = self.record_path(record.id)
        with explained(path):
            self.files.make_folder(path.parent)
            if items is not None:
                content = json.dumps(items, ensure_ascii=False, allow_nan=False).encode()
                self.files.write(path.parent / "items.json", content)
                record = replace(record, items_sha256=hashlib.sha256(content).hexdigest())
            self.files.write(path, record.to_json().encode())
        self._note_checkpoint(record)
        return record

    def _note_checkpoint(self, record: Record) -> None:
        """Record which weights the model's name stands for, to be read by ``namesakes``."""
        name, model = record.names.get("model"), record.cell.get("model")
        if name is not None and model is not None:
            path = checkpoint_names.place(self.root, name, model)
            if not path.exists():
                self.note(str(path.relative_to(self.root)), checkpoint_names.content(name, model))

    def namesakes(self, models: Iterable[tuple[str, checkpoint_names.Model]]) -> list[str]:
        """Return a warning for each name that stands for different weights in ``models`` and the store.

        ``models`` are pairs ``(name, effective model)``.
        """
        asked = list(models)
        return checkpoint_names.told([*checkpoint_names.recorded(self.root, (name for name, _ in asked)), *asked])

    def note(self, name: str, content: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write ``content`` as JSON to ``name``, a path relative to the store; ``durable`` adds an fsync."""
        path = self.root / name
        with explained(path):
            self.files.make_folder(path.parent)
            self.files.write(path, (json.dumps(content, indent=1) + "\n").encode(), durable=durable)

    def _read_record(self, cell_id: str, with_items: bool) -> Record | None:
        path = self.record_path(cell_id)
        wrong = ""
        for attempt in range(READ_RETRIES):
            if attempt:
                # A rerun of the cell replaces the items first and the record second.
                time.sleep(PAUSE_SECONDS * attempt)
            try:
                record = Record.from_json(path.read_text())
                if with_items and record.items_sha256 is not None:
                    _check_items(path.parent / "items.json", record.items_sha256)
                return record
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (CorruptRecordError, UnicodeDecodeError) as error:
                wrong = str(error)
        self.files.move_aside(path.parent, f"{path} {wrong}")
        return None


def _schema_of(root: Path) -> int | None:
    """Return the schema of the store at ``root``; None if there is no store yet.

    A store with records but without ``store.json`` has schema 1. Raises StoreError if ``store.json`` is unreadable.
    """
    path = root / "store.json"
    for _ in range(2):
        try:
            schema = json.loads(path.read_text())["schema"]
        except FileNotFoundError:
            # Look twice: another process may have created the store and recorded a cell after the first look.
            if not any((root / "cells").glob("*/record.json")):
                return None
            continue
        except (ValueError, KeyError, TypeError):
            schema = None
        if not isinstance(schema, int):
            raise StoreError(f'{path}: cannot be read; a store of this version says {{"schema": {SCHEMA}}} there')
        return schema
    return 1


def _refuse_other(schema: int | None, root: Path) -> None:
    if schema is None or schema == SCHEMA:
        return
    remedy = "upgrade mmq-sweeps" if schema > SCHEMA else "give another folder, such as store.dir=runs2"
    raise StoreError(
        f"{root}: is a store of schema {schema}, and this version of mmq-sweeps reads schema {SCHEMA}; {remedy}"
    )


def _check_items(path: Path, sha256: str) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptRecordError(f"has lost {path.name}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptRecordError(f"does not fit {path.name}, whose sha256 is another")
