"""Artifacts: tensors shared by cells, named by a hash of everything they depend on.

artifacts/KIND/KEY.safetensors
artifacts/KIND/KEY.json              digest and description; written last, so it marks the artifact as complete
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmq_sweeps.identity.cell import digest
from mmq_sweeps.store.atomic_files import Files, explained
from mmq_sweeps.store.eviction import Eviction

if TYPE_CHECKING:
    from torch import Tensor

# A reader may see a mismatch while two processes write the same key: each replaces the tensors, then the marker.
READ_RETRIES, PAUSE_SECONDS = 4, 0.05
TOUCH_SECONDS = 60.0


@dataclass(frozen=True)
class Artifacts:
    """Artifacts of a store, bounded in size: an LRU cache on disk (see ``eviction.py``)."""

    files: Files
    eviction: Eviction
    _touched: dict[Path, float] = field(default_factory=dict, compare=False, repr=False)

    def load(self, kind: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load the tensors and description of an artifact; None if absent. A corrupt artifact is moved aside."""
        from safetensors.torch import load

        content = self.read(kind, key)
        return None if content is None else (load(content[0]), content[1])

    def read(self, kind: str, key: str) -> tuple[bytes, dict[str, Any]] | None:
        """Read the safetensors file and description, digest checked; None if absent. A corrupt artifact is moved aside."""
        marker, tensors = self._paths(kind, key)
        wrong = ""
        for attempt in range(READ_RETRIES):
            if attempt:
                time.sleep(PAUSE_SECONDS * attempt)
            try:
                description = json.loads(marker.read_text())
                content = tensors.read_bytes()
                stored = description.pop("sha256")
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno == errno.ESTALE:  # Another machine evicted it during the read.
                    return None
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                wrong = str(error)
                continue
            if digest([description, hashlib.sha256(content).hexdigest()]) == stored:
                self._touch(marker)
                return content, description
            wrong = "does not match its sha256"
        self.files.move_aside(marker, f"{tensors} {wrong}")
        self.files.move_aside(tensors, None)
        return None

    def description(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the description of an artifact without reading its tensors; None if it is absent or no JSON."""
        if not self.has(kind, key):
            return None
        try:
            described: dict[str, Any] = json.loads(self._paths(kind, key)[0].read_text())
        except (OSError, ValueError):
            return None
        return described

    def has(self, kind: str, key: str) -> bool:
        """Return True if both files of an artifact exist. ``load`` checks the digest."""
        return all(path.is_file() for path in self._paths(kind, key))

    def save(self, kind: str, key: str, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
        """Write an artifact unless it exists, then evict others if the store exceeds its bound."""
        from safetensors.torch import save

        if self.has(kind, key):
            return
        marker, path = self._paths(kind, key)
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        told = json.dumps(
            {**description, "sha256": digest([description, hashlib.sha256(content).hexdigest()])}
        ).encode()
        with explained(path):
            self.files.make_folder(path.parent)
            self.files.write(path, content)
            self.files.write(marker, told)
            self.eviction.after_writing(len(content) + len(told))

    def _paths(self, kind: str, key: str) -> tuple[Path, Path]:
        stem = self.files.root / "artifacts" / kind / key
        return stem.with_suffix(".json"), stem.with_suffix(".safetensors")

    def _touch(self, marker: Path) -> None:
        """Update the last use of an artifact (server's clock), at most once a minute."""
        now = time.monotonic()
        if self.files.writable and now - self._touched.get(marker, -TOUCH_SECONDS) >= TOUCH_SECONDS:
            self._touched[marker] = now
            with suppress(OSError):
                os.utime(marker)
