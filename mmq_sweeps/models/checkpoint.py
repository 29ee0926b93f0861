"""Where a checkpoint lies and which weights it holds. Imports no torch: cells are named before any model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
PINNED = "sha256:"


def checkpoint_path(checkpoint: str) -> Path | str:
    """A folder, where the checkpoint is one (``embedded/NAME`` comes with the package), else the name on the hub."""
    if checkpoint.startswith("embedded/"):
        return Path(__file__).resolve().parent / checkpoint
    looks_like_path = checkpoint.startswith((".", "/", "~")) or Path(checkpoint).exists()
    return Path(checkpoint).expanduser().absolute() if looks_like_path else checkpoint


def pinned_revision(config: Mapping[str, Any]) -> str | None:
    """The revision that names a model's weights: the one configured, for a folder the digest of what lies in it.

    So a folder whose weights change is another model, and nothing that was computed with the old ones is used.
    """
    folder = checkpoint_path(config["checkpoint"])
    if config["revision"] is not None or not isinstance(folder, Path) or not weight_files(folder):
        revision: str | None = config["revision"]
        return revision
    return PINNED + weights_digest(folder)


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 over the folder's weight files."""
    files = weight_files(folder)
    found = [path.stat() for path in files]
    # Asked for when a cell is named and again when it is loaded; the weights of a real model take a while.
    return _digest(tuple(files), tuple((file.st_size, file.st_mtime_ns, file.st_ino) for file in found))


@cache
def _digest(files: tuple[Path, ...], _versions: tuple[tuple[int, int, int], ...]) -> str:
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                sha.update(chunk)
    return sha.hexdigest()[:16]
