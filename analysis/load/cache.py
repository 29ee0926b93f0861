"""Tables that were read before, kept in the user's cache folder as Parquet.

A table is filed under the place it was read from and the code that read it. Every row carries the ``stamp`` of its file,
so that of a store in which a sweep is running only what is new is read. Nothing is ever unpickled; a cache that cannot be
read or written costs time, never a result.
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
    """``$XDG_CACHE_HOME/mmq-sweeps/tables``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmq-sweeps" / "tables"


def path_of(place: Path, readers: Sequence[Path]) -> Path:
    """Where the table of ``place`` is kept; ``readers`` are the source files that say how it is read."""
    code = [hashlib.sha256(reader.read_bytes()).hexdigest() for reader in (*readers, Path(__file__))]
    return folder() / f"{digest([str(place.resolve()), pd.__version__, *code])[:24]}.parquet"


def stamp(path: Path | str) -> str:
    """What changes whenever the file at ``path`` is written anew; a FileNotFoundError where there is none."""
    told = os.stat(path)
    return f"{told.st_ino:x}-{told.st_size:x}-{told.st_mtime_ns:x}"


def read(path: Path) -> pd.DataFrame | None:
    """The table kept at ``path``, with its ``stamp`` column; ``None`` where there is none that can be read."""
    try:
        table = pd.read_parquet(path)
        return table if STAMP in table else None
    except _UNREADABLE:
        return None


def write(path: Path, table: pd.DataFrame) -> str | None:
    """Keep ``table``, whole or not at all. A sentence where it could not be kept."""
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
