"""Cache of loaded tables: Parquet files in the user's cache folder.

The cache key is the source's path and a hash of the code that read it. Every row carries the ``stamp`` of its file, so a
store with a running sweep is read incrementally. Nothing is unpickled. An unreadable or unwritable cache costs time, never
a result.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from mmq_sweeps.identity.cell import digest

STAMP = "stamp"
_UNREADABLE = (OSError, ValueError, KeyError)


def folder() -> Path:
    """Return ``$XDG_CACHE_HOME/mmq-sweeps/tables``; ``XDG_CACHE_HOME`` defaults to ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmq-sweeps" / "tables"


def path_of(place: Path, readers: Sequence[Path]) -> Path:
    """Return the cache file for the table of ``place``; a change to any source file in ``readers`` invalidates it."""
    code = [hashlib.sha256(reader.read_bytes()).hexdigest() for reader in (*readers, Path(__file__))]
    return folder() / f"{digest([str(place.resolve()), pd.__version__, *code])[:24]}.parquet"


def stamp(path: Path | str) -> str:
    """Return a string that changes whenever the file at ``path`` is rewritten. Raises FileNotFoundError if it is missing."""
    told = os.stat(path)
    return f"{told.st_ino:x}-{told.st_size:x}-{told.st_mtime_ns:x}"


def read(path: Path) -> pd.DataFrame | None:
    """Return the table cached at ``path``, with its ``stamp`` column; ``None`` if missing or unreadable."""
    try:
        table = pd.read_parquet(path)
        return table if STAMP in table else None
    except _UNREADABLE:
        return None


def write(path: Path, table: pd.DataFrame) -> str | None:
    """Write ``table`` to ``path`` atomically. Return a sentence if that failed, else ``None``."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(temporary, index=False)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return f"the table is read anew each time: {path} cannot be written ({error.strerror}); set XDG_CACHE_HOME"
    return None
