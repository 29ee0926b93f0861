"""The store: the folder that holds records and artifacts. It is the source of truth; trackers mirror it.

    store.json                           the schema of all this
    cells/ID/record.json, items.json     one folder a cell
    artifacts/KIND/KEY.safetensors,.json what cells share (artifacts.py)
    sweeps/SWEEP/                        which cells were asked for together, by which command, and who works on them
    locks/KIND/NAME.json, pins/          who does what at this moment, and what it needs (locks.py)
    wandb/                               the runs of an offline tracker
    corrupt/                             files whose digest was wrong, moved aside
    tmp/                                 files being written

A file appears under its name whole or not at all, so a process killed at any moment leaves a store that the next one can
use. Nothing from the store is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmq_sweeps.errors import StoreError
from mmq_sweeps.store import checkpoint_names
from mmq_sweeps.store.artifacts import PAUSE_SECONDS, READ_RETRIES, Artifacts
from mmq_sweeps.store.atomic_files import STALE_SECONDS, Files, explained
from mmq_sweeps.store.eviction import GB, Eviction
from mmq_sweeps.store.lock_owner import Owner
from mmq_sweeps.store.locks import LEASE_SECONDS, Artifact, Lock, Locks
from mmq_sweeps.store.record import CorruptRecordError, Record

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCHEMA", "STALE_SECONDS", "Store", "explained"]

# Raise it when a store that an earlier version wrote has to be converted, and teach migrate.py how.
SCHEMA = 2


@dataclass(frozen=True)
class Store:
    """A store at ``root``. ``say`` is told, in a sentence, of what was found wrong and mended."""

    root: Path
    say: Callable[[str], None] = field(compare=False)
    files: Files = field(compare=False, repr=False)
    locks: Locks = field(compare=False, repr=False)
    artifacts: Artifacts = field(compare=False, repr=False)

    @staticmethod
    def open(
        root: str | Path,
        say: Callable[[str], None] = lambda text: None,
        *,
        max_gb: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
        label: str = "",
    ) -> Store:
        """The store at ``root``, created if need be; a ``StoreError`` where it cannot be written or is of another schema.

        Its artifacts are kept under ``max_gb`` (of 10**9 bytes). Its locks last ``lease_seconds`` beyond their owner's last
        sign of life, and say ``label`` to those who ask who holds them.
        """
        store = Store.assembled(Path(root), say, True, max_gb, lease_seconds, label)
        with explained(store.root):
            schema = schema_of(store.root)
            _refuse_other(schema, store.root)
            store.files.prepare()
            if schema is None:
                store.files.create(store.root / "store.json", schema_json())
        return store

    @staticmethod
    def of(settings: Mapping[str, Any], say: Callable[[str], None] = lambda text: None, label: str = "") -> Store:
        """The store that the ``store`` section of a configuration asks for."""
        lease_seconds = settings.get("lease_seconds", LEASE_SECONDS)
        return Store.open(settings["dir"], say, max_gb=settings.get("max_gb"), lease_seconds=lease_seconds, label=label)

    @staticmethod
    def existing(root: str | Path, say: Callable[[str], None] = lambda text: None) -> Store:
        """Open a store that exists for writing; a ``StoreError`` if there is none, where ``open`` would make one."""
        Store.reading(root)
        return Store.open(root, say)

    @staticmethod
    def reading(root: str | Path, say: Callable[[str], None] = lambda text: None) -> Store:
        """The store at ``root`` to be read only: it may lie where nothing can be written, and nothing in it changes."""
        store = Store.assembled(Path(root), say, writable=False)
        if not (store.root / "cells").is_dir():
            raise StoreError(f"{store.root}: is no store (it has no folder 'cells'); run a sweep first")
        _refuse_other(schema_of(store.root), store.root)
        return store

    @staticmethod
    def assembled(
        root: Path,
        say: Callable[[str], None],
        writable: bool,
        max_gb: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
        label: str = "",
    ) -> Store:
        """A store that is not looked at yet, of whichever schema: ``open`` and ``reading`` are for all but migration."""
        files = Files(root.absolute(), say, writable)
        locks = Locks(files, lease_seconds, label)
        eviction = Eviction(files, locks, None if max_gb is None else int(max_gb * GB))
        return Store(files.root, say, files, locks, Artifacts(files, eviction))

    def record(self, cell_id: str) -> Record | None:
        """The record of a cell, ``None`` where there is none; a corrupt one is moved aside and counts as none."""
        return self._read_record(cell_id, with_items=True)

    def summary(self, cell_id: str) -> Record | None:
        """``record`` without a look at its items, which is most of the reading."""
        return self._read_record(cell_id, with_items=False)

    def record_path(self, cell_id: str) -> Path:
        return self.root / "cells" / cell_id / "record.json"

    def record_sha(self, cell_id: str) -> str | None:
        """The SHA-256 of a record's file: two records of a cell differ in it. ``None`` where there is none."""
        try:
            return hashlib.sha256(self.record_path(cell_id).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def cell_ids(self) -> list[str]:
        """Every cell that has a folder, with or without a record."""
        return sorted(folder.name for folder in (self.root / "cells").iterdir())

    def records(self) -> list[Record]:
        """Every readable record, oldest first."""
        return _oldest_first(self.record(cell_id) for cell_id in self.cell_ids())

    def summaries(self) -> list[Record]:
        """``records`` without a look at their items."""
        return _oldest_first(self.summary(cell_id) for cell_id in self.cell_ids())

    def items(self, cell_id: str) -> list[dict[str, Any]]:
        """Per item of a finished cell: ``{"id", "prediction", "scores": {metric: score}}``."""
        items: list[dict[str, Any]] = json.loads((self.record_path(cell_id).parent / "items.json").read_text())
        return items

    def save(self, record: Record, items: list[dict[str, Any]] | None = None) -> Record:
        """Write a record, after its items, and return it as written."""
        path = self.record_path(record.id)
        with explained(path):
            self.files.make_folder(path.parent)
            if items is not None:
                content = json.dumps(items, ensure_ascii=False, allow_nan=False).encode()
                self.files.write(path.parent / "items.json", content)
                record = replace(record, items_sha256=hashlib.sha256(content).hexdigest())
            self.files.write(path, record.to_json().encode())
        self.note_checkpoint(record)
        return record

    def note_checkpoint(self, record: Record) -> None:
        """Note which weights a record's model was, for ``namesakes``."""
        name, model = record.names.get("model"), record.cell.get("model")
        if name is not None and model is not None:
            path = checkpoint_names.place(self.root, name, model)
            if not path.exists():
                self.note(str(path.relative_to(self.root)), checkpoint_names.content(name, model))

    def namesakes(self, models: Iterable[tuple[str, checkpoint_names.Model]]) -> list[str]:
        """A warning for each name of ``(name, effective model)`` that stands for other weights here, or in the records."""
        asked = list(models)
        return checkpoint_names.told([*checkpoint_names.recorded(self.root, (name for name, _ in asked)), *asked])

    def note(self, name: str, content: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write ``content`` as JSON under ``name``, a path inside the store; ``durable`` costs a write to the disk."""
        path = self.root / name
        with explained(path):
            self.files.make_folder(path.parent)
            self.files.write(path, (json.dumps(content, indent=1) + "\n").encode(), durable=durable)

    def artifact(self, kind: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and description of an artifact, ``None`` where there is none; a corrupt one is moved aside."""
        return self.artifacts.load(kind, key)

    def has_artifact(self, kind: str, key: str) -> bool:
        """Whether an artifact was written completely; its digest is checked when it is read."""
        return self.artifacts.has(kind, key)

    def save_artifact(self, kind: str, key: str, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
        """Write an artifact and keep the store within its bound; where the artifact is already there, nothing happens."""
        self.artifacts.save(kind, key, tensors, description)

    def room_for(self, size_bytes: int) -> bool:
        """Whether an artifact of this size fits under ``max_gb``, once what no running job needs is evicted."""
        return self.artifacts.eviction.room_for(size_bytes)

    def needed(self, artifacts: Iterable[Artifact]) -> AbstractContextManager[None]:
        """Keep ``(kind, key)`` from being evicted meanwhile. Pin first, then look what is there."""
        return self.locks.pinned(artifacts)

    def lock(self, kind: str, name: str) -> Lock | None:
        """The lock, ``None`` where a living process has it."""
        return self.locks.lock(kind, name)

    def acquire(
        self, kind: str, name: str, done: Callable[[], bool], waiting: Callable[[], None] | None = None
    ) -> Lock | None:
        """Wait for a lock until it is had, or ``done()``; then ``None``. ``waiting()`` comes before every pause."""
        return self.locks.acquire(kind, name, done, waiting)

    def holder(self, kind: str, name: str) -> Owner | None:
        """Who has a lock."""
        return self.locks.holder(kind, name)

    def _read_record(self, cell_id: str, with_items: bool) -> Record | None:
        path = self.record_path(cell_id)
        wrong = ""
        for attempt in range(READ_RETRIES):
            if attempt:
                # Of a cell that is measured anew, the items are replaced first and the record then.
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


def schema_json() -> bytes:
    return (json.dumps({"schema": SCHEMA}) + "\n").encode()


def schema_of(root: Path) -> int | None:
    """The schema of the store at ``root``, ``None`` where there is no store yet; one with cells that does not say is of 1."""
    path = root / "store.json"
    for _ in range(2):
        try:
            schema = json.loads(path.read_text())["schema"]
        except FileNotFoundError:
            # Another process may have made the store and recorded a cell between two looks.
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
    if schema > SCHEMA:
        raise StoreError(
            f"{root}: is a store of schema {schema}, and this version of mmq-sweeps knows up to {SCHEMA}; upgrade mmq-sweeps"
        )
    command = f"python -m launch store migrate --store {shlex.quote(str(root))}"
    raise StoreError(
        f"{root}: is a store of schema {schema}, which an earlier version wrote; convert it with: {command}"
    )


def _check_items(path: Path, sha256: str) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptRecordError(f"has lost {path.name}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptRecordError(f"does not fit {path.name}, whose sha256 is another")


def _oldest_first(found: Iterator[Record | None]) -> list[Record]:
    return sorted((record for record in found if record), key=lambda record: (record.created, record.id))
