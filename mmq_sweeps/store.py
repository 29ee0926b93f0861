"""The store: the folder that holds records and artifacts. It is the source of truth; trackers mirror it.

    cells/ID/record.json, items.json     one folder a cell
    artifacts/KIND/KEY.safetensors       what cells share, named by the hash of all that it depends on
    artifacts/KIND/KEY.json              its digest and description; written last, so it marks the artifact as complete
    sweeps/GROUP.json                    which cells were asked for together, and by which command
    wandb/                               the runs of an offline tracker
    corrupt/                             files whose digest was wrong, moved aside
    tmp/                                 files being written

A file appears under its name whole or not at all, so a process killed at any moment leaves a store that the next one can
use. Nothing from the store is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmq_sweeps.cell import digest
from mmq_sweeps.errors import StoreError
from mmq_sweeps.record import CorruptRecordError, Record

if TYPE_CHECKING:
    from torch import Tensor

STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Store:
    """A store at ``root``. ``say`` is told, in a sentence, of what was found wrong and mended."""

    root: Path
    say: Callable[[str], None] = field(default=lambda text: None, compare=False)

    @staticmethod
    def open(root: str | Path, say: Callable[[str], None] = lambda text: None) -> Store:
        """The store at ``root``, created if need be; a ``StoreError`` where it cannot be written."""
        store = Store(Path(root).absolute(), say)
        with explained(store.root):
            for folder in ("cells", "artifacts", "tmp"):
                (store.root / folder).mkdir(parents=True, exist_ok=True)
            probe = store.root / "tmp" / f"probe.{os.getpid()}"
            store._write(probe, b"writable\n")
            probe.unlink()
            store._remove_stale()
        return store

    def record(self, cell_id: str) -> Record | None:
        """The record of a cell, ``None`` where there is none; a corrupt one is moved aside and counts as none."""
        path = self.record_path(cell_id)
        try:
            record = Record.from_json(path.read_text())
            if record.items_sha256 is not None:
                self._check_items(path.parent / "items.json", record.items_sha256)
        except FileNotFoundError:
            return None
        except (CorruptRecordError, UnicodeDecodeError) as error:
            self._move_aside(path.parent, f"{path} {error}")
            return None
        return record

    def record_path(self, cell_id: str) -> Path:
        return self.root / "cells" / cell_id / "record.json"

    def records(self) -> list[Record]:
        """Every readable record, oldest first."""
        found = [self.record(folder.name) for folder in sorted((self.root / "cells").iterdir())]
        return sorted((record for record in found if record), key=lambda record: (record.created, record.id))

    def items(self, cell_id: str) -> list[dict[str, Any]]:
        """Per item of a finished cell: ``{"id", "prediction", "scores": {metric: score}}``."""
        items: list[dict[str, Any]] = json.loads((self.record_path(cell_id).parent / "items.json").read_text())
        return items

    def save(self, record: Record, items: list[dict[str, Any]] | None = None) -> Record:
        """Write a record, after its items, and return it as written."""
        path = self.record_path(record.id)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if items is not None:
                content = json.dumps(items, ensure_ascii=False, allow_nan=False).encode()
                self._write(path.parent / "items.json", content)
                record = Record(**{**record.__dict__, "items_sha256": hashlib.sha256(content).hexdigest()})
            self._write(path, record.to_json().encode())
        return record

    def note(self, name: str, content: dict[str, Any]) -> None:
        """Write ``content`` as JSON under ``name``, a path inside the store."""
        path = self.root / name
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, (json.dumps(content, indent=1) + "\n").encode())

    def artifact(self, kind: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and description of an artifact, ``None`` where there is none; a corrupt one is moved aside."""
        from safetensors.torch import load

        described, tensors = self._artifact_paths(kind, key)
        try:
            description = json.loads(described.read_text())
            content = tensors.read_bytes()
            stored = description.pop("sha256")
            if digest([description, hashlib.sha256(content).hexdigest()]) != stored:
                raise ValueError("does not match its sha256")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._move_aside(described, f"{tensors} {error}")
            self._move_aside(tensors, None)
            return None
        return load(content), description

    def has_artifact(self, kind: str, key: str) -> bool:
        """Whether an artifact was written completely; its digest is checked when it is read."""
        return all(path.is_file() for path in self._artifact_paths(kind, key))

    def save_artifact(self, kind: str, key: str, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
        from safetensors.torch import save

        described, path = self._artifact_paths(kind, key)
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        marker = {**description, "sha256": digest([description, hashlib.sha256(content).hexdigest()])}
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, content)
            self._write(described, json.dumps(marker).encode())

    def _artifact_paths(self, kind: str, key: str) -> tuple[Path, Path]:
        stem = self.root / "artifacts" / kind / key
        return stem.with_suffix(".json"), stem.with_suffix(".safetensors")

    def _check_items(self, path: Path, sha256: str) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptRecordError(f"has lost {path.name}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CorruptRecordError(f"does not fit {path.name}, whose sha256 is another")

    def _write(self, path: Path, content: bytes) -> None:
        temporary = self.root / "tmp" / f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _move_aside(self, path: Path, reason: str | None) -> None:
        if not path.exists():
            return
        target = self.root / "corrupt" / f"{path.name}.{uuid.uuid4().hex[:8]}"
        with explained(target):
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        if reason:
            self.say(f"{reason}: moved to {target}; it will be computed again.")

    def _remove_stale(self) -> None:
        now = time.time()
        for path in (self.root / "tmp").iterdir():
            if now - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An OSError inside becomes a ``StoreError`` that names ``path`` and what can be done."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            error.errno,
            f"cannot write {path}: {error.strerror}. Choose another folder with store.dir=FOLDER, or make room; "
            "what was recorded before is kept",
        ) from error
